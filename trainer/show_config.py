"""`trainer show-config`: what DeepSpeed would receive for a recipe on so many processes of this machine's kind."""

from __future__ import annotations

import torch

from trainer.config import Config
from trainer.ds_config import DeepSpeedPlan, build_ds_config
from trainer.finetune_plan import plan_task_batches
from trainer.half_precision import half_precisions
from trainer.phases import most_micro_steps
from trainer.recipe import AnyConfig
from trainer.topology import BatchPlan, Topology


def layout_for(config: AnyConfig, *, world_size: int, device_type: str) -> tuple[BatchPlan, DeepSpeedPlan]:
    """The layout on devices of that type, without starting anything; UserError where it is impossible."""
    topology = Topology(
        rank=0,
        local_rank=0,
        world_size=world_size,
        local_world_size=world_size,
        num_stages=config.parallel.num_stages if isinstance(config, Config) else 1,
    )
    if isinstance(config, Config):
        batch_plan = most_micro_steps(config, dp_world_size=topology.dp_world_size)
    else:
        batch_plan = plan_task_batches(config, dp_world_size=topology.dp_world_size)
    ds_plan = build_ds_config(
        config,
        topology=topology,
        batch_plan=batch_plan,
        device_type=device_type,
        half_precisions=half_precisions(device_type),
    )
    return batch_plan, ds_plan


def deepspeed_plan_for(config: AnyConfig, *, world_size: int) -> DeepSpeedPlan:
    """What DeepSpeed would receive on this machine's kind of device; UserError where the layout is impossible."""
    return layout_for(config, world_size=world_size, device_type="cuda" if torch.cuda.is_available() else "cpu")[1]
