from __future__ import annotations

import json
import os
import signal
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from command_line import Commands

from trainer.__main__ import main
from trainer.commands.arguments import hold_stop_signal
from trainer.loop import Trainer
from trainer.metrics import MetricsWriter, read_records
from trainer.preemption import Preemption, StoppedEarly
from trainer.pretraining_run import PretrainingRun
from trainer.progress import ProgressReporter
from trainer.recipe import load_recipe
from trainer.runtime import Runtime
from trainer.setup import set_up


def train(recipe: Path, shards: Path, runtime: Runtime, folder: Path, *, told_at_poll: int = 0) -> PretrainingRun:
    """Train; at the poll of that number, from 1, this process gets SIGUSR2."""
    config = load_recipe(str(recipe), overrides=[f"runs_dir={folder}", "checkpoint.every_steps=100"])
    run = set_up(config, shards=[shards], runtime=runtime, resume="auto", report=print)
    progress = ProgressReporter(config.train.steps, start_step=run.state.step, is_main=False)
    polls = 0

    with (
        MetricsWriter(config.run_dir, is_main=True, resume_step=run.state.step) as metrics,
        Preemption(runtime) as preemption,
    ):

        def poll() -> None:
            nonlocal polls
            polls += 1
            if polls == told_at_poll:
                os.kill(os.getpid(), signal.SIGUSR2)
            preemption.poll()

        try:
            Trainer(run, metrics=metrics, progress=progress, poll=poll).train()
        finally:
            run.loader.close()
            run.engine.close()
    return run


def records(folder: Path) -> list[dict[str, Any]]:
    """What the run computed, without times."""
    kept = ("step", "train/loss", "train/tokens", "validation/loss")
    found = read_records(folder / "tiny/metrics.jsonl")
    computed = [record for record in found if any(key in record for key in kept[1:])]
    return [{key: record[key] for key in kept if key in record} for record in computed]


# Polls of the tiny recipe: before steps 1 and 2, after the five batches of the evaluation at step 2, before step 3, ...
@pytest.mark.parametrize(
    ("told_at_poll", "saved_step", "pending"), [(1, None, False), (2, 1, False), (4, 2, True), (8, 2, False)]
)
def test_a_run_told_to_stop_saves_where_it_is_and_goes_on_with_nothing_left_out_or_twice(
    tiny_recipe: Path,
    shards: Path,
    runtime: Runtime,
    tmp_path: Path,
    told_at_poll: int,
    saved_step: int | None,
    pending: bool,
) -> None:
    with pytest.raises(StoppedEarly):
        train(tiny_recipe, shards, runtime, tmp_path / "cut", told_at_poll=told_at_poll)
    run = load_recipe(str(tiny_recipe), overrides=[f"runs_dir={tmp_path / 'cut'}"]).run_dir
    saved = max((int(path.name[5:]) for path in run.glob("checkpoints/step-*")), default=None)
    assert saved == saved_step
    if saved_step is not None:
        state = json.loads((run / f"checkpoints/step-{saved_step:08d}/state.json").read_text())
        assert state["evaluation_pending"] == pending
    cut = train(tiny_recipe, shards, runtime, tmp_path / "cut")
    whole = train(tiny_recipe, shards, runtime, tmp_path / "whole")
    assert records(tmp_path / "cut") == records(tmp_path / "whole")
    assert cut.state == whole.state


def test_signals_mean_what_they_did_once_training_is_over(runtime: Runtime) -> None:
    before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGUSR2)}
    with Preemption(runtime) as preemption:
        preemption.poll()
        assert all(signal.getsignal(number) != handler for number, handler in before.items())
    assert {number: signal.getsignal(number) for number in before} == before


PROGRAM = """\
import os, signal, sys, time
from trainer.errors import run_command
from trainer.preemption import Preemption, StoppedEarly
from trainer.runtime import started
from trainer.topology import topology_from_env

def main():
    topology = topology_from_env(os.environ)
    with started(topology, deterministic=False) as runtime, Preemption(runtime) as preemption:
        for step in range(10):
            if step == 3 and topology.rank == 1:
                os.kill(os.getpid(), signal.SIGTERM)
            try:
                preemption.poll()
            except StoppedEarly:
                print("stopped at", step, flush=True)
                return 75
    return 0

sys.exit(run_command(main))
"""


def test_all_ranks_stop_at_the_step_at_which_one_was_told(commands: Commands, tmp_path: Path) -> None:
    program = tmp_path / "program.py"
    program.write_text(PROGRAM)
    ended = commands.run_ranks(cwd=tmp_path, ranks=2, program=program)
    assert [(done.code, done.out) for done in ended] == [(75, "stopped at 3\n")] * 2


@pytest.fixture
def own_signal_mask() -> Iterator[None]:
    """The test may change which signals wait."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, [])
    yield
    signal.pthread_sigmask(signal.SIG_SETMASK, before)


@pytest.mark.usefixtures("own_signal_mask")
def test_a_signal_that_comes_while_the_run_is_set_up_is_answered_at_the_first_poll(runtime: Runtime) -> None:
    hold_stop_signal()
    # To this thread: threads that other tests have started do not hold it back, as a command's own would.
    signal.pthread_kill(threading.get_ident(), signal.SIGUSR2)
    with Preemption(runtime) as preemption, pytest.raises(StoppedEarly):
        preemption.poll()


@pytest.mark.usefixtures("own_signal_mask")
def test_a_signal_that_comes_when_the_run_is_done_does_not_kill_it(runtime: Runtime) -> None:
    hold_stop_signal()
    with Preemption(runtime) as preemption:
        preemption.poll()
    signal.pthread_kill(threading.get_ident(), signal.SIGUSR2)
    assert signal.sigpending() == {signal.SIGUSR2}
    # Forget it before the test's own mask comes back.
    before = signal.signal(signal.SIGUSR2, signal.SIG_IGN)
    signal.signal(signal.SIGUSR2, before)
    assert signal.sigpending() == set()


@pytest.mark.usefixtures("own_signal_mask")
@pytest.mark.parametrize(("command", "recipe"), [("pretrain", "demo"), ("finetune", "movie_sentiment")])
def test_the_signal_waits_from_the_start_of_a_training_command(
    command: str, recipe: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    waiting: list[bool] = []

    def stop_at_once(config: Any, *, resume: str) -> bool:
        waiting.append(signal.SIGUSR2 in signal.pthread_sigmask(signal.SIG_BLOCK, []))
        return False

    monkeypatch.setattr(f"trainer.{command}.{command}", stop_at_once)
    assert main([command, recipe]) == 75
    assert waiting == [True]
