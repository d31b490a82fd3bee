"""A pipe to a program of ours on a host: over ssh, or as a step of a SLURM job."""

from __future__ import annotations

import contextlib
import json
import os
import queue
import shlex
import subprocess
import threading
import time
from collections.abc import Callable
from typing import Any, NamedTuple

from cluster.job import JobSpec
from cluster.launchers import in_apptainer, in_pyxis
from cluster.ssh import SSH


class News(NamedTuple):
    """What a host's agent said; None when the pipe to it ended."""

    host: str
    said: dict[str, Any] | None


Connect = Callable[[str], list[str]]


def over_ssh(spec: JobSpec, *, module: str = "cluster.agent") -> Connect:
    """The command that starts a module of ours on a host over ssh."""

    def connect(host: str) -> list[str]:
        variables = [f"{name}={value}" for name, value in _environment(spec).items()]
        program = ["env", *variables, *in_apptainer(spec), spec.python, "-m", module]
        return [*SSH, host, f"cd {shlex.quote(str(spec.workdir))} && exec {shlex.join(program)}"]

    return connect


def over_srun(spec: JobSpec, *, module: str = "cluster.agent") -> Connect:
    """The command that starts a module of ours on a node of the SLURM job around this process."""

    def connect(host: str) -> list[str]:
        variables = [f"{name}={value}" for name, value in _environment(spec).items()]
        step = ["srun", "--overlap", "--immediate=10", "--nodes=1", "--ntasks=1", f"--nodelist={host}"]
        step += ["--unbuffered", "--cpu-bind=none", *in_pyxis(spec)]
        return [*step, "env", *variables, *in_apptainer(spec), spec.python, "-m", module]

    return connect


def _environment(spec: JobSpec) -> dict[str, str]:
    inherited = {"PYTHONPATH": os.environ["PYTHONPATH"]} if "PYTHONPATH" in os.environ else {}
    return {**inherited, **spec.profile.environment}


class Channel:
    """The pipe to one host's program; what it says, but for an agent's beats, goes into `news`."""

    def __init__(self, host: str, *, connect: Connect, news: queue.Queue[News]) -> None:
        self.host = host
        self.heard_s: float | None = None
        self._news = news
        self._process = subprocess.Popen(
            connect(host), stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, start_new_session=True
        )
        threading.Thread(target=self._listen, daemon=True).start()

    def tell(self, order: dict[str, Any]) -> None:
        """Send an order; one to an agent that is gone is lost, and its end is in the news."""
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(json.dumps(order) + "\n")
            self._process.stdin.flush()
        except BrokenPipeError:
            return

    def close(self, *, patience_s: float) -> None:
        """Hang up: the agent kills what it runs and ends. Afterwards the pipe is cut."""
        assert self._process.stdin is not None
        with contextlib.suppress(BrokenPipeError):
            self._process.stdin.close()
        try:
            self._process.wait(timeout=patience_s)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()

    def _listen(self) -> None:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            try:
                said = json.loads(line)
            except ValueError:
                said = None
            if not isinstance(said, dict):
                continue  # what a login shell prints before the program starts
            self.heard_s = time.monotonic()
            if "beat" not in said:
                self._news.put(News(self.host, said))
        self._news.put(News(self.host, None))
