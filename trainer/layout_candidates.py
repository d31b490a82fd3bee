"""The layouts that a recipe can have on so many devices, and why others cannot be."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass

from pydantic import ValidationError

from trainer.config import Config
from trainer.ds_config import DeepSpeedPlan, build_ds_config
from trainer.errors import UserError
from trainer.phases import most_micro_steps
from trainer.time_model import Hardware
from trainer.topology import BatchPlan, Topology

_ZERO_STAGES = (0, 1, 2, 3)


@dataclass(frozen=True)
class AllowedLayout:
    """A layout that no rule refuses: the recipe with it, a rank of it, its batches and what DeepSpeed would get."""

    config: Config
    topology: Topology
    batch_plan: BatchPlan
    ds_plan: DeepSpeedPlan


def allowed_layouts(config: Config, *, hardware: Hardware, refused: Counter[str]) -> Iterator[AllowedLayout]:
    """Every ZeRO stage, number of stages and micro-batch that no rule refuses for the recipe's batch.

    Those that one does are counted in `refused` by its reason.
    """
    world_size, rows = hardware.count, config.train.global_batch_size
    for num_stages in _divisors(world_size):
        replicas = world_size // num_stages
        sizes = _divisors(rows // replicas) if rows % replicas == 0 else [config.train.micro_batch_size]
        for zero_stage in _ZERO_STAGES:
            for micro_batch_size in sizes:
                try:
                    yield _layout(
                        config,
                        hardware=hardware,
                        num_stages=num_stages,
                        zero_stage=zero_stage,
                        micro_batch_size=micro_batch_size,
                    )
                except UserError as error:
                    refused[_reason(str(error))] += 1


def _layout(
    config: Config, *, hardware: Hardware, num_stages: int, zero_stage: int, micro_batch_size: int
) -> AllowedLayout:
    values = config.model_dump()
    values["parallel"]["num_stages"] = num_stages
    values["engine"]["ds_config"] = f"zero{zero_stage}"
    values["train"]["micro_batch_size"] = micro_batch_size
    try:
        config = Config.model_validate(values)
    except ValidationError as error:
        raise UserError(error.errors()[0]["msg"].removeprefix("Value error, ")) from None
    topology = Topology(
        rank=0, local_rank=0, world_size=hardware.count, local_world_size=hardware.count, num_stages=num_stages
    )
    batch_plan = most_micro_steps(config, dp_world_size=topology.dp_world_size)
    ds_plan = build_ds_config(
        config,
        topology=topology,
        batch_plan=batch_plan,
        device_type="cpu" if hardware.device.name == "cpu" else "cuda",
        half_precisions=frozenset(hardware.device.peak_flops) - {"fp32"},
    )
    if ds_plan.zero_stage != zero_stage:
        raise UserError(ds_plan.notes[0])
    return AllowedLayout(config, topology, batch_plan, ds_plan)


def _reason(message: str) -> str:
    """A rule's message without the place and the numbers of the layout that it refuses."""
    without_place = re.sub(r"^\S+\.json: ", "", message)
    return re.sub(r"(?<!\w)\d+", "N", without_place)


def _divisors(number: int) -> list[int]:
    return [one for one in range(1, number + 1) if number % one == 0]
