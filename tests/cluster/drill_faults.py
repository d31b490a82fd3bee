"""Faults that are done to a supervised run on several hosts, and how each is mended afterwards."""

from __future__ import annotations

import contextlib
import json
import os
import random
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

from cluster_site import PROFILE, Site
from hosts import wait_until

from trainer.events import read_events

# What SIGKILL leaves no time to write stands in the last lines.
_TAIL_BYTES = 1 << 14
_PATIENCE_S = 180.0


class Drill:
    """One supervised run. Its command is given again where it ended, as a user would."""

    def __init__(self, site: Site, cwd: Path, *, run_dir: Path, arguments: list[str], seed: int) -> None:
        self.run_dir = run_dir
        self._site = site
        self._hosts = site.hosts
        self._cwd = cwd
        self._arguments = arguments
        self._random = random.Random(seed)
        self._mend: Callable[[], None] | None = None
        self._job: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Give the run's command on the first host."""
        argv = [*self._site.command, "supervise", self._site.recipe, *self._arguments]
        with (self._cwd / "out").open("a") as out:
            at_host = self._hosts.argv("node1", argv, cwd=self._cwd)
            self._job = subprocess.Popen(at_host, env=self._site.env, stdout=out, stderr=out)

    def wait(self) -> int:
        """The command's exit code, once it has ended."""
        assert self._job is not None
        return self._job.wait(timeout=_PATIENCE_S)

    def stop(self) -> None:
        """Tell the run to save and end, and wait until it has."""
        self._hosts.run("node1", "pkill", "-TERM", "-f", "cluster supervise")
        assert self.wait() == 75, self.said()

    def said(self) -> str:
        """The last lines that the commands printed."""
        return (self._cwd / "out").read_text()[-4000:]

    def step(self) -> tuple[int, float]:
        """The last measured step and when it was, in seconds since 1970; 0 and 0 before the first."""
        path = self.run_dir / "metrics.jsonl"
        if not path.exists():
            return 0, 0.0
        with path.open("rb") as file:
            file.seek(max(0, path.stat().st_size - _TAIL_BYTES))
            lines = file.read().split(b"\n")[:-1]
        records = [json.loads(line) for line in lines[-3:] if line.startswith(b'{"step"')]
        return (records[-1]["step"], records[-1]["time_s"]) if records else (0, 0.0)

    def reach(self, step: int, *, what: str) -> float:
        """Wait until a step is measured, and give the time of the last one that is."""

        def reached() -> bool:
            assert self._job is None or self._job.poll() is None, self.said()
            return self.step()[0] >= step

        wait_until(reached, what=what, timeout_s=_PATIENCE_S)
        return self.step()[1]

    def next(self, number: int) -> Callable[[], None]:
        """The next fault, all kinds in turn, in an order that changes from turn to turn; mends what the last left."""
        if self._mend is not None:
            self._mend()
            self._mend = None
        kinds = [kind for kind in vars(Drill) if kind.startswith("a_")]
        turn, place = divmod(number, len(kinds))
        random.Random(turn).shuffle(kinds)
        fault: Callable[[], None] = getattr(self, kinds[place])
        return fault

    def _used(self) -> list[str]:
        """The hosts on which the last attempt runs."""
        starts = [event for event in read_events(self.run_dir) if event["event"] == "start"]
        return [host.partition(":")[0] for host in starts[-1]["hosts"]]

    def _victim(self) -> str:
        """A host of the run other than the first, where the supervisor is."""
        return self._random.choice([host for host in self._used() if host != "node1"])

    def _kill(self, program: str, *, signal: str = "-9") -> None:
        self._hosts.run(self._random.choice(self._used()), "pkill", signal, "-f", program)

    def a_killed_rank(self) -> None:
        self._kill("trainer pretrain")

    def a_killed_agent(self) -> None:
        self._kill("cluster.agent")

    def a_killed_supervisor(self) -> None:
        self._hosts.run("node1", "pkill", "-9", "-f", "cluster supervise")
        assert self.wait() == -9
        self.start()

    def a_stopped_rank(self) -> None:
        self._kill("trainer pretrain", signal="-STOP")

    def a_job_told_to_stop(self) -> None:
        self.stop()
        self.start()

    def a_power_cut(self) -> None:
        victim = self._victim()
        self._hosts.power_off(victim)
        self._boot(victim)

    def a_host_gone_for_good(self) -> None:
        victim = self._victim()
        self._hosts.power_off(victim)
        self._mend = lambda: self._boot(victim)

    def a_cable_out_for_five_seconds(self) -> None:
        self._cut(5)

    def a_cable_out_for_twelve_seconds(self) -> None:
        # Long enough for the agent to end its rank, too short for the host to be left out of the next start.
        self._cut(12)

    def a_cable_out_for_good(self) -> None:
        victim = self._victim()
        self._hosts.cut(victim)
        self._mend = lambda: self._hosts.heal(victim)

    def a_full_disk(self) -> None:
        self._fill(left=0)

    def a_disk_too_full_for_a_checkpoint(self) -> None:
        self._fill(left=200_000)

    def a_torn_checkpoint_and_a_killed_rank(self) -> None:
        newest = sorted((self.run_dir / "checkpoints").glob("step-*"))[-1]
        for partition in newest.glob("partition-*"):
            os.truncate(partition, partition.stat().st_size - 100)
        self._kill("trainer pretrain")

    def a_torn_latest_and_a_killed_rank(self) -> None:
        (self.run_dir / "checkpoints/latest").write_text("step-")
        self._kill("trainer pretrain")

    def _boot(self, name: str) -> None:
        self._hosts.heal(name)
        self._hosts.boot(name)

    def _cut(self, seconds: float) -> None:
        victim = self._victim()
        self._hosts.cut(victim)
        time.sleep(seconds)
        self._hosts.heal(victim)

    def _fill(self, *, left: int) -> None:
        """Leave so many bytes on the run folder's disk until the run has ended, saying why; then start it again."""
        ballast = self._hosts.disk / "ballast"
        with ballast.open("wb", buffering=0) as file:
            with contextlib.suppress(OSError):
                while True:
                    file.write(bytes(1 << 16))
            file.truncate(ballast.stat().st_size - left)
        code = self.wait()
        ballast.unlink()
        assert (code, "No space left on device" in self.said()) == (2, True), self.said()
        self.start()


def witnessed_profile(folder: Path) -> Path:
    """The site's profile with an interpreter that writes down the rows which ranks train on."""
    python = folder / "python"
    witness = Path(__file__).with_name("row_witness.py")
    python.write_text(f'#!/bin/sh\nexec {sys.executable} -u {witness} "$@"\n')
    python.chmod(0o755)
    profile = folder / "witnessed.yaml"
    profile.write_text(f"{PROFILE}python: {python}\n")
    return profile
