"""Which rank is slow: timed without waiting for the device, gathered with the sum that a logging step makes anyway."""

from __future__ import annotations

from pathlib import Path
from typing import ClassVar

import pytest
import torch
from torch import nn

from trainer.events import append_event, read_events
from trainer.forward_timer import ForwardTimer
from trainer.rank_health import by_rank, note_start, placed, restarts
from trainer.runtime import Runtime
from trainer.topology import Topology


class Slow(nn.Module):
    """A module whose forward pass takes as long as it is told."""

    def __init__(self) -> None:
        super().__init__()
        self.now_s = 10.0

    def forward(self, seconds: float) -> None:
        self.now_s += seconds


def timed() -> tuple[Slow, ForwardTimer]:
    module = Slow()
    return module, ForwardTimer(module, device=torch.device("cpu"), clock=lambda: module.now_s)


def test_the_mean_of_the_training_passes_since_the_last_reading_is_given() -> None:
    module, timer = timed()
    assert timer.read() == 0.0
    module(2.0)
    module.now_s += 100.0  # backward passes, updates
    module(4.0)
    assert timer.read() == 3.0
    module(1.0)
    assert timer.read() == 1.0
    assert timer.read() == 0.0


def test_passes_of_an_evaluation_do_not_count() -> None:
    module, timer = timed()
    module(2.0)
    module.eval()
    module(50.0)
    module.train()
    assert timer.read() == 2.0


class Event:
    """A device's event: reached once the test says so."""

    made: ClassVar[list[Event]] = []

    def __init__(self, *, enable_timing: bool) -> None:
        assert enable_timing
        self.reached_ms: float | None = None
        Event.made.append(self)

    def record(self) -> None:
        return

    def query(self) -> bool:
        return self.reached_ms is not None

    def elapsed_time(self, end: Event) -> float:
        assert end.reached_ms is not None, "would wait for the device"
        assert self.reached_ms is not None
        return end.reached_ms - self.reached_ms


def test_on_a_gpu_passes_that_it_has_not_reached_are_left_for_the_next_reading(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "Event", Event)
    module = Slow()
    timer = ForwardTimer(module, device=torch.device("cuda"))
    Event.made.clear()
    for _ in range(3):
        module(0.0)
    for event, reached_ms in zip(Event.made, (0.0, 2.0, 5.0, 9.0), strict=False):
        event.reached_ms = reached_ms
    assert timer.read() == pytest.approx(0.003)
    Event.made[4].reached_ms, Event.made[5].reached_ms = 10.0, 17.0
    assert timer.read() == pytest.approx(0.007)


def gathered(figures: list[list[float]], *, num_stages: int = 1) -> dict[str, float | list[float]]:
    """What a job of so many ranks measures, each rank adding what it placed."""
    size = len(figures)
    ranks = [Topology(rank, local_rank=0, world_size=size, local_world_size=1, num_stages=num_stages)
             for rank in range(size)]  # fmt: skip
    columns = zip(*(placed(own, topology=rank) for own, rank in zip(figures, ranks, strict=True)), strict=True)
    return by_rank([sum(column) for column in columns], topology=ranks[0])


def test_every_rank_has_its_figures_and_the_slowest_is_named() -> None:
    found = gathered([[1.0, 0.2, 0.01], [1.0, 0.5, 0.02], [1.1, 0.25, 0.9]])
    assert found == {
        "ranks/step_s": [1.0, 1.0, 1.1],
        "ranks/forward_s": [0.2, 0.5, 0.25],
        "ranks/data_wait_s": [0.01, 0.02, 0.9],
        "ranks/slowest": 1.0,
        "ranks/slowest_over_median": 2.0,
    }


def test_a_rank_is_held_against_its_own_pipeline_stage() -> None:
    # Stage 1, ranks 3 to 5, computes the head and takes longer everywhere.
    found = gathered([[1.0, 0.1, 0.0], [1.0, 0.3, 0.0], [1.0, 0.1, 0.0]] + [[1.0, 0.8, 0.0]] * 3, num_stages=2)
    assert (found["ranks/slowest"], found["ranks/slowest_over_median"]) == (1.0, pytest.approx(3.0))


def test_one_rank_has_no_others_to_be_compared_with() -> None:
    assert gathered([[1.0, 0.2, 0.01]]) == {}


def test_a_start_is_noted_with_the_ranks_hosts_and_restarts_are_counted(tmp_path: Path, runtime: Runtime) -> None:
    assert restarts(tmp_path) == 0
    for step in (0, 40, 60):
        note_start(tmp_path, step=step, topology=runtime.topology)
        append_event(tmp_path, "save", step=step + 10)
    (first, *_) = [event for event in read_events(tmp_path) if event["event"] == "train"]
    assert (first["step"], first["world_size"], len(first["hosts"])) == (0, 1, 1)
    assert restarts(tmp_path) == 2
