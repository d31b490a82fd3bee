"""The optimiser that a recipe names, built over given parameter groups."""

from __future__ import annotations

from typing import Any

import torch

from trainer.config import OptimizerConfig

# One kernel for a whole update instead of one for each operation; torch has it for these devices.
_FUSED_DEVICES = frozenset({"cpu", "cuda"})


def create_optimizer(
    config: OptimizerConfig, *, parameter_groups: list[dict[str, Any]], device_type: str
) -> torch.optim.Optimizer:
    """AdamW (Loshchilov and Hutter 2019) over groups that may each set their own weight_decay.

    Every rank builds it before DeepSpeed does; ZeRO then swaps the parameters for its fp32 partitions,
    which is sound because AdamW treats each element by itself.
    """
    return torch.optim.AdamW(
        parameter_groups,
        lr=config.learning_rate,
        betas=(config.beta1, config.beta2),
        eps=config.eps,
        weight_decay=config.weight_decay,
        fused=device_type in _FUSED_DEVICES,
    )


def set_learning_rate(optimizer: torch.optim.Optimizer, learning_rate: float) -> None:
    """Set one rate for all groups; also takes the optimiser that DeepSpeed wraps around the real one."""
    for group in optimizer.param_groups:
        group["lr"] = learning_rate
