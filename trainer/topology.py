"""The layout's arithmetic: ranks as stages and replicas, a global batch as micro-batches."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from trainer.errors import UserError
from trainer.ranks import find_place


@dataclass(frozen=True)
class Topology:
    """One process's place among `world_size`, split in `num_stages` pipeline stages of equal width.

    Ranks count pipe-major, as in DeepSpeed's PipeDataParallelTopology: all data-parallel ranks of
    stage 0, then those of stage 1. UserError when the numbers contradict each other.
    """

    rank: int
    local_rank: int
    world_size: int
    local_world_size: int
    num_stages: int = 1

    def __post_init__(self) -> None:
        _check_within("RANK", self.rank, "WORLD_SIZE", self.world_size)
        _check_within("LOCAL_RANK", self.local_rank, "LOCAL_WORLD_SIZE", self.local_world_size)
        if self.local_world_size > self.world_size:
            raise UserError(
                f"LOCAL_WORLD_SIZE={self.local_world_size} exceeds WORLD_SIZE={self.world_size}; "
                "a machine cannot hold more processes than the job; start the job through its launcher"
            )
        if self.num_stages < 1 or self.world_size % self.num_stages:
            fits = _both_sides(_divisors(self.world_size), self.num_stages)
            raise UserError(
                f"num_stages={self.num_stages} does not divide world_size={self.world_size}; use num_stages={fits}"
            )

    @property
    def dp_world_size(self) -> int:
        """How many replicas of the model there are: the ranks of one stage."""
        return self.world_size // self.num_stages

    @property
    def dp_rank(self) -> int:
        """Which replica this rank belongs to, in [0, dp_world_size)."""
        return self.rank % self.dp_world_size

    @property
    def stage_id(self) -> int:
        """Which pipeline stage this rank computes, in [0, num_stages)."""
        return self.rank // self.dp_world_size

    @property
    def is_main(self) -> bool:
        """Whether this is the rank that prints and writes for the job: rank 0."""
        return self.rank == 0


@dataclass(frozen=True)
class BatchPlan:
    """How a step's rows are dealt: global_batch_size = micro_batch_size × grad_accum_steps × dp_world_size."""

    global_batch_size: int
    micro_batch_size: int
    grad_accum_steps: int
    dp_world_size: int

    @property
    def rows_per_rank(self) -> int:
        """Rows that one data-parallel rank computes in a step."""
        return self.micro_batch_size * self.grad_accum_steps


def topology_from_env(env: Mapping[str, str], *, num_stages: int = 1) -> Topology:
    """The place that a launcher set in the environment (`trainer.ranks`); alone when there was none.

    UserError when variables are missing, are no numbers, or contradict each other.
    """
    place = find_place(env)
    return Topology(
        rank=place.rank,
        local_rank=place.local_rank,
        world_size=place.world_size,
        local_world_size=place.local_world_size,
        num_stages=num_stages,
    )


def plan_batches(*, global_batch_size: int, micro_batch_size: int, dp_world_size: int, lanes: int) -> BatchPlan:
    """Split a global batch over ranks and micro-batches; UserError naming the nearest sizes that fit.

    dp_world_size must divide `lanes` so that every rank reads whole lanes of the row order, and
    global_batch_size must be a multiple of micro_batch_size × dp_world_size.
    """
    if lanes % dp_world_size:
        fits = _both_sides(_divisors(lanes), dp_world_size)
        raise UserError(f"dp_world_size={dp_world_size} does not divide data.lanes={lanes}; use dp_world_size={fits}")
    rows_at_once = micro_batch_size * dp_world_size
    if global_batch_size % rows_at_once:
        raise UserError(
            f"global_batch_size={global_batch_size} is not divisible by micro_batch_size={micro_batch_size} × "
            f"dp_world_size={dp_world_size} (={rows_at_once}); use "
            + _fitting_sizes(global_batch_size, micro_batch_size, dp_world_size, lanes)
        )
    return BatchPlan(
        global_batch_size=global_batch_size,
        micro_batch_size=micro_batch_size,
        grad_accum_steps=global_batch_size // rows_at_once,
        dp_world_size=dp_world_size,
    )


def _fitting_sizes(global_batch_size: int, micro_batch_size: int, dp_world_size: int, lanes: int) -> str:
    rows_at_once = micro_batch_size * dp_world_size
    below = global_batch_size // rows_at_once * rows_at_once
    choices = [f"global_batch_size={_nearest([below, below + rows_at_once], global_batch_size)}"]
    if global_batch_size % dp_world_size == 0:
        per_rank = global_batch_size // dp_world_size
        choices.append(f"micro_batch_size={_nearest(_divisors(per_rank), micro_batch_size)}")
    if global_batch_size % micro_batch_size == 0:
        worlds = [size for size in _divisors(global_batch_size // micro_batch_size) if lanes % size == 0]
        choices.append(f"dp_world_size={_both_sides(worlds, dp_world_size)}")
    return " or ".join(choices)


def _divisors(number: int) -> list[int]:
    small = [candidate for candidate in range(1, math.isqrt(number) + 1) if number % candidate == 0]
    return sorted({*small, *(number // candidate for candidate in small)})


def _nearest(sizes: Iterable[int], wanted: int) -> int:
    return min((size for size in sizes if size > 0), key=lambda size: (abs(size - wanted), -size))


def _both_sides(sizes: Iterable[int], wanted: int) -> str:
    ordered = sorted(sizes)
    below, above = [size for size in ordered if size < wanted], [size for size in ordered if size > wanted]
    return " or ".join(str(size) for size in (*below[-1:], *above[:1]))


def _check_within(name: str, value: int, size_name: str, size: int) -> None:
    if not 0 <= value < size:
        raise UserError(
            f"{name}={value} is not in [0, {size_name}={size}); start the job through its launcher, or unset both"
        )
