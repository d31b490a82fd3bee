from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from trainer.config import Config
from trainer.errors import UserError
from trainer.phases import BatchSizes, most_micro_steps, phase_at, phases_of, plan_all_batches, with_micro_batch_size


def config(**changed: Any) -> Config:
    train = {"steps": 10, "global_batch_size": 24, "micro_batch_size": 2, **changed.pop("train", {})}
    return Config.model_validate({"name": "a", "data": {"shards": "x", "max_seq_len": 128}, "train": train, **changed})


TWO = [
    {"steps": 6, "max_seq_len": 64, "learning_rate": 1e-3, "mask_rate": 0.3},
    {"steps": 4, "global_batch_size": 8, "micro_batch_size": 1},
]


def test_a_recipe_without_phases_is_one_phase() -> None:
    (phase,) = phases_of(config())
    assert (phase.number, phase.first_step, phase.config, phase.own_schedule) == (0, 0, config(), False)


def test_a_phase_takes_from_the_recipe_what_it_does_not_set() -> None:
    first, second = phases_of(config(phases=TWO))
    assert (first.first_step, second.first_step) == (0, 6)
    shapes = [
        (
            phase.config.train.steps,
            phase.config.data.max_seq_len,
            phase.config.train.global_batch_size,
            phase.config.train.micro_batch_size,
            phase.config.optimizer.learning_rate,
            phase.config.objective.mask_rate.end,
        )
        for phase in (first, second)
    ]
    assert shapes == [(6, 64, 24, 2, 1e-3, 0.3), (4, 128, 8, 1, 1e-4, 0.15)]
    assert first.config.phases == []


def test_the_border_belongs_to_the_next_phase_and_the_end_to_the_last() -> None:
    phases = phases_of(config(phases=TWO))
    assert [phase_at(phases, step).number for step in (0, 5, 6, 9, 10)] == [0, 0, 1, 1, 1]


def test_batches_grow_stage_by_stage() -> None:
    sizes = BatchSizes(warmup=((2, 4), (3, 8)), final=16)
    assert [sizes.at(step) for step in range(5)] == [4, 4, 8, 16, 16]
    assert sizes.stages() == [(0, 4), (2, 8), (3, 16)]
    assert [sizes.rows_before(step) for step in range(6)] == [0, 4, 8, 16, 32, 48]
    assert [sizes.steps_within(rows) for rows in (3, 4, 15, 16, 31, 32, 48)] == [0, 1, 2, 3, 3, 4, 5]


@given(stages=st.lists(st.tuples(st.integers(1, 9), st.integers(1, 9)), max_size=4), step=st.integers(0, 60))
def test_rows_and_steps_are_what_counting_gives(stages: list[tuple[int, int]], step: int) -> None:
    until, warmup = 0, []
    for length, rows in stages:
        until += length
        warmup.append((until, rows))
    sizes = BatchSizes(warmup=tuple(warmup), final=10)
    rows = sum(sizes.at(earlier) for earlier in range(step))
    assert sizes.rows_before(step) == rows
    assert sizes.steps_within(rows) == step
    assert sizes.steps_within(rows + sizes.at(step) - 1) == step


WARMUP = [{"until_step": 2, "global_batch_size": 6}]


def test_every_batch_size_is_planned_and_the_engine_gets_the_most_micro_steps() -> None:
    plans = plan_all_batches(config(train={"batch_warmup": WARMUP}), dp_world_size=3)
    assert [(plan.global_batch_size, plan.grad_accum_steps) for plan in plans] == [(6, 1), (24, 4)]
    assert most_micro_steps(config(phases=TWO), dp_world_size=2).grad_accum_steps == 6


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"train": {"global_batch_size": 25}}, "global_batch_size=25 is not divisible by micro_batch_size=2"),
        (
            {"train": {"batch_warmup": [{"until_step": 2, "global_batch_size": 5}]}},
            "train.batch_warmup[0]: global_batch_size=5 is not divisible by micro_batch_size=2 × dp_world_size=2 (=4); "
            "use global_batch_size=4",
        ),
        (
            {"phases": [TWO[0], {"steps": 4, "global_batch_size": 9}]},
            "phases[1]: global_batch_size=9 is not divisible by micro_batch_size=2 × dp_world_size=2 (=4); "
            "use global_batch_size=8",
        ),
        (
            {"phases": [{**TWO[0], "batch_warmup": [{"until_step": 1, "global_batch_size": 7}]}, TWO[1]]},
            "phases[0].batch_warmup[0]: global_batch_size=7 is not divisible",
        ),
    ],
)
def test_a_batch_that_cannot_be_dealt_is_named_with_the_nearest_that_can(changed: Any, message: str) -> None:
    with pytest.raises(UserError) as caught:
        plan_all_batches(config(**changed), dp_world_size=2)
    assert str(caught.value).startswith(message)


PER_PHASE = [{"steps": 6, "schedule": {"warmup_steps": 2}}, {"steps": 4, "schedule": {}}]


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"phases": [{"steps": 6}]}, "train.steps=10 is not the sum of the phases' steps, 6; set train.steps=6"),
        ({"phases": TWO, "train": {"batch_warmup": WARMUP}}, "put it into a phase"),
        ({"phases": TWO, "data": {"shards": "x", "on_exhausted": "stop"}}, "goes with a run without phases"),
        ({"phases": [PER_PHASE[0], TWO[1]]}, "set schedule in all phases and not beside them, or in none"),
        ({"phases": PER_PHASE, "schedule": {"warmup_steps": 1}}, "set schedule in all phases and not beside them"),
        (
            {"phases": [PER_PHASE[0], {"steps": 4, "schedule": {"warmup_steps": 5}}]},
            "phases[1].schedule.warmup_steps=5 is longer than steps=4",
        ),
        ({"phases": [{"steps": 10, "max_seq_len": 513}]}, "phases[0].max_seq_len=513 is longer than model.max_pos"),
        ({"train": {"batch_warmup": [{"until_step": 10, "global_batch_size": 2}]}}, "stay below steps=10"),
        ({"train": {"batch_warmup": WARMUP * 2}}, "until_step must grow from stage to stage"),
        ({"train": {"batch_warmup": [{"until_step": 2, "global_batch_size": 24}]}}, "stay below 24"),
        (
            {"phases": [{**TWO[0], "batch_warmup": [{"until_step": 6, "global_batch_size": 2}]}, TWO[1]]},
            "phases[0].batch_warmup: until_step must grow",
        ),
    ],
)
def test_phases_that_contradict_the_recipe_are_refused(changed: Any, message: str) -> None:
    with pytest.raises(ValidationError) as caught:
        config(**changed)
    assert message in str(caught.value)


def test_another_micro_batch_size_is_that_of_all_phases() -> None:
    phases = phases_of(with_micro_batch_size(config(phases=TWO), 4))
    assert [phase.config.train.micro_batch_size for phase in phases] == [4, 4]
