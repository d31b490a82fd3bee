"""Dynamic batching: who waits for whom, what goes through the model together, and what happens when it fails."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from typing import Any

import numpy as np
import pytest
import torch

from trainer.serving.batcher import Batcher
from trainer.tasks.examples import Example, Outputs
from trainer.tasks.model import Predicted


class Model:
    """Gives the first id of each sequence, notes each batch's lengths, and waits at the gate before it answers."""

    def __init__(self) -> None:
        self.gate = threading.Event()
        self.entered = threading.Event()
        self.batches: list[list[int]] = []
        self.fails = False

    def __call__(self, batch: Any) -> Predicted:
        self.entered.set()
        assert self.gate.wait(10)
        if self.fails:
            raise RuntimeError("out of memory")
        starts = np.flatnonzero(batch.position_ids[0] == 0)
        self.batches.append(np.diff(starts, append=batch.tokens).tolist())
        return Predicted({}, {"first": torch.from_numpy(batch.input_ids[0][starts])})


def sequences(*lengths: int, first: int) -> list[Example]:
    """Sequences of these lengths whose ids begin at `first`, `first` + 1, ..."""
    return [
        Example(
            number,
            input_ids=np.full(length, first + number, dtype=np.int32),
            token_type_ids=np.zeros(length, dtype=np.int32),
            rows=np.zeros(1, dtype=np.int64),
            predictions=1,
            targets=None,
        )
        for number, length in enumerate(lengths)
    ]


def firsts(answer: Future[list[Outputs]]) -> list[int]:
    return [int(outputs["first"][0]) for outputs in answer.result(10)]


@pytest.fixture
def model() -> Model:
    return Model()


@pytest.fixture
def make(model: Model) -> Iterator[Callable[..., Batcher]]:
    made: list[Batcher] = []

    def make(*, tokens: int = 100, wait_s: float = 0.0) -> Batcher:
        made.append(Batcher(model, term="x", max_batch_tokens=tokens, max_wait_s=wait_s))
        return made[-1]

    yield make
    model.gate.set()
    for batcher in made:
        batcher.close()


def test_what_waits_while_the_model_works_goes_through_it_together(model: Model, make: Callable[..., Batcher]) -> None:
    batcher = make()
    one = batcher.submit(sequences(3, first=10))
    assert model.entered.wait(10)
    two, three = batcher.submit(sequences(2, 9, first=20)), batcher.submit(sequences(5, first=30))
    model.gate.set()
    assert (firsts(one), firsts(two), firsts(three)) == ([10], [20, 21], [30])
    assert model.batches == [[3], [9, 5, 2]]


def test_a_batch_holds_no_more_tokens_than_it_may(model: Model, make: Callable[..., Batcher]) -> None:
    model.gate.set()
    assert firsts(make(tokens=8).submit(sequences(3, 4, 12, 4, first=0))) == [0, 1, 2, 3]
    assert model.batches == [[12], [4, 4], [3]]


def test_a_request_waits_for_others_until_the_tokens_are_there(model: Model, make: Callable[..., Batcher]) -> None:
    model.gate.set()
    batcher = make(tokens=8, wait_s=60.0)
    one = batcher.submit(sequences(3, first=0))
    assert not one.done()
    assert firsts(batcher.submit(sequences(5, first=7))) == [7]
    assert (firsts(one), model.batches) == ([0], [[5, 3]])


def test_a_request_alone_waits_no_longer_than_it_must(model: Model, make: Callable[..., Batcher]) -> None:
    model.gate.set()
    began_s = time.monotonic()
    assert firsts(make(wait_s=0.2).submit(sequences(3, first=0))) == [0]
    assert 0.2 <= time.monotonic() - began_s < 5.0


def test_a_failure_reaches_those_who_asked_and_the_next_is_answered(model: Model, make: Callable[..., Batcher]) -> None:
    batcher = make()
    model.fails = True
    failing = batcher.submit(sequences(3, first=0))
    model.gate.set()
    with pytest.raises(RuntimeError, match="out of memory"):
        failing.result(10)
    model.fails = False
    assert firsts(batcher.submit(sequences(4, first=5))) == [5]


def test_a_request_that_was_taken_back_is_not_computed(model: Model, make: Callable[..., Batcher]) -> None:
    batcher = make()
    one = batcher.submit(sequences(3, first=0))
    assert model.entered.wait(10)
    left, last = batcher.submit(sequences(7, first=1)), batcher.submit(sequences(4, first=2))
    assert left.cancel()
    model.gate.set()
    assert (firsts(one), firsts(last), model.batches) == ([0], [2], [[3], [4]])


def test_closing_answers_what_was_submitted(model: Model, make: Callable[..., Batcher]) -> None:
    batcher = make(wait_s=60.0)
    model.gate.set()
    answers = [batcher.submit(sequences(3, first=number)) for number in range(3)]
    batcher.close()
    assert [firsts(answer) for answer in answers] == [[0], [1], [2]]
