"""`make drill`: random faults over one supervised run, whose end is bit for bit that of a run without a fault."""

from __future__ import annotations

import os
import random
import statistics
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from hosts import wait_until
from launching import last_step, losses

from trainer.checkpoint_files import CheckpointReader
from trainer.events import read_events

FAULTS = int(os.environ.get("BERTLINE_DRILL_FAULTS", "0"))
STEPS_A_FAULT = 100
SAVE_EVERY = 10


class Drill:
    """One supervised run and the faults that can be done to it; each leaves the hosts as they were."""

    def __init__(self, site, run_dir: Path, *, seed: int) -> None:
        self._hosts = site.hosts
        self._checkpoints = run_dir / "checkpoints"
        self._random = random.Random(seed)

    def _victim(self) -> str:
        # node1 runs the supervisor.
        return self._random.choice(self._hosts.names[1:])

    def _kill(self, program: str, *, signal: str = "-9") -> None:
        self._hosts.run(self._victim(), "pkill", signal, "-f", program)

    def a_killed_rank(self) -> None:
        self._kill("trainer pretrain")

    def a_killed_agent(self) -> None:
        self._kill("cluster.agent")

    def a_stopped_rank(self) -> None:
        self._kill("trainer pretrain", signal="-STOP")

    def a_power_cut(self) -> None:
        victim = self._victim()
        self._hosts.power_off(victim)
        self._hosts.heal(victim)
        self._hosts.boot(victim)

    def a_cable_out_for_five_seconds(self) -> None:
        self._cut(5)

    def a_cable_out_for_twelve_seconds(self) -> None:
        # Long enough for the agent to end its rank, too short for the host to be left out of the next start.
        self._cut(12)

    def _cut(self, seconds: float) -> None:
        victim = self._victim()
        self._hosts.cut(victim)
        time.sleep(seconds)
        self._hosts.heal(victim)

    def a_torn_checkpoint_and_a_killed_rank(self) -> None:
        newest = sorted(self._checkpoints.glob("step-*"))[-1]
        for partition in newest.glob("partition-*"):
            os.truncate(partition, partition.stat().st_size - 100)
        self._kill("trainer pretrain")

    def a_torn_latest_and_a_killed_rank(self) -> None:
        (self._checkpoints / "latest").write_text("step-")
        self._kill("trainer pretrain")

    def next(self, number: int):
        """All kinds of faults in turn, in an order that changes from turn to turn."""
        kinds = [kind for kind in vars(Drill) if kind.startswith("a_")]
        turn, place = divmod(number, len(kinds))
        random.Random(turn).shuffle(kinds)
        return getattr(self, kinds[place])


@contextmanager
def supervised(site, cwd: Path, *arguments: str) -> Iterator[subprocess.Popen[bytes]]:
    hostfile = site.hostfile(cwd, *site.hosts.names)
    argv = [*site.command, "supervise", site.recipe, "--hostfile", hostfile, "--profile", site.profile, *arguments]
    with (cwd / "out").open("w") as out:
        job = subprocess.Popen(site.hosts.argv("node1", argv, cwd=cwd), env=site.env, stdout=out, stderr=out)
    try:
        yield job
    finally:
        if job.poll() is None:
            job.kill()
        job.wait()


@pytest.mark.skipif(FAULTS == 0, reason="takes a quarter of a minute a fault: make drill")
@pytest.mark.timeout(0)
def test_random_faults_change_nothing_in_the_model_and_leave_nothing_behind(site):
    changed = {
        "train.steps": FAULTS * STEPS_A_FAULT,
        "train.global_batch_size": 12,
        "train.stall_minutes": 0.2,
        "checkpoint.every_steps": SAVE_EVERY,
        "model.hidden_dropout": 0.1,
        "evaluation": "null",
    }
    arguments = [
        "--no-check",
        "--no-preflight",
        *(part for key, value in changed.items() for part in ("--set", f"{key}={value}")),
    ]
    whole, cwd = site.new_folder(), site.new_folder()
    with supervised(site, whole, *arguments) as job:
        assert job.wait(timeout=600) == 0, (whole / "out").read_text()
    run_dir = cwd / "runs/run"
    metrics, drill, waits, lost = run_dir / "metrics.jsonl", Drill(site, run_dir, seed=FAULTS), [], []
    with supervised(site, cwd, *arguments) as job:

        def step() -> int:
            assert job.poll() is None, (cwd / "out").read_text()
            return last_step(metrics) if metrics.exists() else 0

        def reach(wanted: int, *, what: str) -> None:
            wait_until(lambda: step() >= wanted, what=what, timeout_s=180)

        for number in range(FAULTS):
            # Not always just behind a save.
            reach(2 * SAVE_EVERY + number * (STEPS_A_FAULT - 20) + number % SAVE_EVERY, what="steps")
            before, since_s, fault = step(), time.time(), drill.next(number)
            fault()
            reach(before + SAVE_EVERY, what=f"steps after {fault.__name__}")
            waits.append(time.time() - since_s)
            trains = [event for event in read_events(run_dir) if event["event"] == "train"]
            starts = [event["step"] for event in trains if event["time_s"] > since_s]
            lost.append(before - starts[-1] if starts else 0)
            print(f"{fault.__name__.replace('_', ' ')} at step {before}: {waits[-1]:.1f} s, {lost[-1]} steps lost")
        assert job.wait(timeout=600) == 0, (cwd / "out").read_text()
    events = read_events(run_dir)
    starts = [event["time_s"] for event in events if event["event"] == "start"]
    trains = [event["time_s"] for event in events if event["event"] == "train"]
    start_up_s = statistics.median(min((t for t in trains if t > s), default=s) - s for s in starts)
    print(
        f"{FAULTS} faults of {FAULTS} survived; from the fault to {SAVE_EVERY} new steps: median "
        f"{statistics.median(waits):.1f} s, longest {max(waits):.1f} s, of which start-up {start_up_s:.1f} s; "
        f"steps lost: at most {max(lost)}, saved every {SAVE_EVERY}"
    )
    assert {event["world_size"] for event in events if event["event"] == "start"} == {3}
    assert losses(metrics) == losses(whole / "runs/run/metrics.jsonl")
    last = f"checkpoints/step-{FAULTS * STEPS_A_FAULT:08d}"
    one, other = (CheckpointReader(folder / "runs/run" / last).weights() for folder in (cwd, whole))
    assert all(one[name].equal(other[name]) for name in other)
    for host in site.hosts.names:
        assert site.hosts.run(host, "pgrep", "-f", "trainer pretrain|cluster.agent", expect=None).stdout == ""
