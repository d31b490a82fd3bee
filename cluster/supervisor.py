"""Keeps a run going: starts it anew after a fault, on the hosts that remain, until it is done or no longer moves."""

from __future__ import annotations

import signal
import time
import zlib
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from types import FrameType
from typing import Any

from cluster.attempt import Attempt, Outcome, connect_all, first_error
from cluster.channel import Connect
from cluster.hostfile import Host, fill
from cluster.job import JobSpec, check_layout
from cluster.sbatch import logs_dir
from trainer.errors import USER_ERROR_EXIT_CODE, UserError
from trainer.events import append_event, read_json_lines
from trainer.ranks import job_port

_LONGEST_PAUSE_S = 60.0


class Supervisor:
    """Runs a job over agents. restarts: how many attempts in a row may bring no new step before it gives up."""

    def __init__(
        self,
        spec: JobSpec,
        hosts: Sequence[Host],
        *,
        connect: Connect,
        restarts: int,
        report: Callable[[str], None],
    ) -> None:
        self._spec = spec
        self._hosts = hosts
        self._connect = connect
        self._restarts = restarts
        self._report = report
        self._signals: list[int] = []
        self._told = False

    def run(self) -> int:
        """Run to the end; gives the exit code: 0, 2 for a mistake, 75 when told to stop, else the last fault's."""
        for number in (signal.SIGTERM, signal.SIGUSR2):
            signal.signal(number, self._note_signal)
        fruitless = 0
        while True:
            before = furthest_step(self._spec.run_dir)
            outcome = self._attempt()
            self._event("end" if not outcome.restart else "fault", why=outcome.why, code=outcome.code)
            if not outcome.restart:
                return outcome.code
            after = furthest_step(self._spec.run_dir)
            fruitless = 0 if after > before else fruitless + 1
            if fruitless > self._restarts:
                self._event("give up", why=f"{fruitless} attempts in a row brought no step after step {after}")
                return outcome.code
            if self._told:
                return outcome.code
            pause_s = min(2.0**fruitless - 1, _LONGEST_PAUSE_S)
            self._event("restart", pause_s=pause_s, step=after)
            time.sleep(pause_s)
            if self._told:
                return outcome.code

    def _attempt(self) -> Outcome:
        channels, news = connect_all(self._spec, self._hosts, connect=self._connect)
        with Attempt(channels, news) as attempt:
            try:
                layout = largest_layout(self._spec, [host for host in self._hosts if host.name in channels])
            except UserError as error:
                return Outcome(1, True, str(error))
            logs = next_log_folder(self._spec.run_dir)
            used = [f"{host.name}:{host.slots}" for host in layout]
            self._event("start", hosts=used, world_size=sum(host.slots for host in layout), logs=str(logs))
            spec = self._spec
            argv = [spec.python, "-u", "-m", *spec.trainer_arguments]
            # Another port each time: what a dead rank 0 left behind may hold the last one.
            port = job_port(zlib.crc32(str(logs).encode()))
            attempt.start(layout, argv=argv, port=port, logs=logs)
            outcome = attempt.watch(stop_signal=self._take_signal)
        told = first_error(logs) if outcome.code == USER_ERROR_EXIT_CODE else None
        return replace(outcome, why=f"{outcome.why}: {told}") if told else outcome

    def _note_signal(self, number: int, frame: FrameType | None) -> None:
        self._told = True
        self._signals.append(number)

    def _take_signal(self) -> int | None:
        return self._signals.pop(0) if self._signals else None

    def _event(self, event: str, **facts: Any) -> None:
        """Note what happened in the run folder, and say it."""
        append_event(self._spec.run_dir, event, **facts)
        said = ", ".join(f"{key} {value}" for key, value in facts.items())
        self._report(f"{event}: {said}")


def largest_layout(spec: JobSpec, hosts: Sequence[Host]) -> tuple[Host, ...]:
    """The most ranks that the recipe allows on these hosts, filled in order; UserError when it allows none."""
    slots = sum(host.slots for host in hosts)
    for world_size in range(slots, 0, -1):
        try:
            check_layout(spec.config, world_size=world_size)
        except UserError:
            continue
        return fill(hosts, processes=world_size)
    raise UserError(f"{len(hosts)} host(s) answer, with {slots} slot(s), and the recipe runs on no such number")


def furthest_step(run_dir: Path) -> int:
    """The last step that the run has measured or saved, 0 before the first."""
    names = [path.name.removeprefix("step-") for path in run_dir.glob("checkpoints/step-*")]
    saved = [int(name) for name in names if name.isdecimal()]
    measured = [int(record["step"]) for record in read_json_lines(run_dir / "metrics.jsonl") if "step" in record]
    return max([0, *saved, *measured])


def next_log_folder(run_dir: Path) -> Path:
    """A folder of logs/ for the next attempt's ranks."""
    taken = [int(path.name.removeprefix("attempt-")) for path in logs_dir(run_dir).glob("attempt-*")]
    return logs_dir(run_dir) / f"attempt-{max(taken, default=0) + 1:04d}"
