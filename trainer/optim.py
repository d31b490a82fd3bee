"""The optimiser that a recipe names, built over given parameter groups."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch

from trainer.errors import UserError
from trainer.optimizer_config import (
    AdamConfig,
    AdamWConfig,
    LambConfig,
    MuonConfig,
    OptimizerConfig,
    SGDConfig,
    StableAdamWConfig,
)

ParameterGroups = list[dict[str, Any]]

# One kernel for a whole update instead of one for each operation; torch has it for these devices.
_FUSED_DEVICES = frozenset({"cpu", "cuda"})


def create_optimizer(
    config: OptimizerConfig, *, parameter_groups: ParameterGroups, device_type: str
) -> torch.optim.Optimizer:
    """The recipe's optimiser over groups that may each set their own weight_decay.

    Muon takes the groups whose `muon` is true. Every rank builds it before DeepSpeed does; ZeRO then swaps the
    parameters for its fp32 partitions, which is sound where each element is treated by itself: `build_ds_config`
    refuses the optimisers of which that is not true. UserError where a package is missing.
    """
    fused = device_type in _FUSED_DEVICES
    rate, decay = config.learning_rate, config.weight_decay
    match config:
        case AdamWConfig():
            return torch.optim.AdamW(parameter_groups, **_adam(config), fused=fused)
        case AdamConfig():
            return torch.optim.Adam(parameter_groups, **_adam(config), fused=fused)
        case SGDConfig():
            return torch.optim.SGD(
                parameter_groups,
                lr=rate,
                weight_decay=decay,
                momentum=config.momentum,
                nesterov=config.nesterov,
                fused=fused,
            )
        case LambConfig():
            return _create_lamb(config, parameter_groups)
        case StableAdamWConfig():
            return _counting_in_groups(_from_library().StableAdamW(parameter_groups, **_adam(config)))
        case MuonConfig():
            muon = torch.optim.Muon(
                [group for group in parameter_groups if group.get("muon")],
                lr=rate,
                weight_decay=decay,
                momentum=config.momentum,
                ns_steps=config.newton_schulz_steps,
                adjust_lr_fn="match_rms_adamw",
            )
            rest = [group for group in parameter_groups if not group.get("muon")]
            return MuonWithAdamW(muon, torch.optim.AdamW(rest, **_adam(config), fused=fused))


class MuonWithAdamW(torch.optim.Optimizer):
    """Two optimisers as one: the groups and the state of both."""

    def __init__(self, muon: torch.optim.Optimizer, adamw: torch.optim.Optimizer) -> None:
        super().__init__([*muon.param_groups, *adamw.param_groups], {})
        muon.state = adamw.state = self.state
        self._parts = (muon, adamw)

    def step(self, closure: Callable[[], float] | None = None) -> None:  # type: ignore[override]
        """Update every parameter once."""
        for part in self._parts:
            part.step(closure)


def _adam(config: AdamWConfig | AdamConfig | LambConfig | StableAdamWConfig | MuonConfig) -> dict[str, Any]:
    betas = (config.beta1, config.beta2)
    return {"lr": config.learning_rate, "betas": betas, "eps": config.eps, "weight_decay": config.weight_decay}


def _create_lamb(config: LambConfig, parameter_groups: ParameterGroups) -> torch.optim.Optimizer:
    # adam_debias=True leaves the rate as it is. Without it the library divides the rate by Adam's bias correction,
    # behind the trust ratio, which already takes the update's size away: the first update would be ten times too long.
    paper = {"weight_decouple": False, "pre_norm": False, "adam_debias": True}
    optimizer = _from_library().Lamb(parameter_groups, **_adam(config), **paper)
    # The library's bound of 10 on a parameter's norm is not in the paper; a word embedding's norm is far above it.
    optimizer.clamp = math.inf
    return _counting_in_groups(optimizer)


def _from_library() -> Any:
    try:
        import pytorch_optimizer
    except ImportError:
        raise UserError(
            "this optimizer.name needs the package pytorch-optimizer; pip install 'bertline[optimizers]'"
        ) from None
    return pytorch_optimizer


def _counting_in_groups(optimizer: torch.optim.Optimizer) -> torch.optim.Optimizer:
    """Let the library's count of updates be there from the start: a checkpoint then knows where it belongs."""
    for group in optimizer.param_groups:
        group["step"] = 0
    return optimizer


@contextmanager
def without_update(optimizer: torch.optim.Optimizer) -> Iterator[None]:
    """Leave out the updates that DeepSpeed asks the optimiser for: weights and state stay, gradients are consumed."""
    vars(optimizer)["step"] = lambda closure=None: None
    try:
        yield
    finally:
        del vars(optimizer)["step"]


def set_learning_rate(optimizer: torch.optim.Optimizer, learning_rate: float) -> None:
    """Set the rate of all groups, each times its `rate_scale` (1 where it has none); also takes DeepSpeed's wrapper."""
    for group in optimizer.param_groups:
        group["lr"] = learning_rate * group.get("rate_scale", 1.0)
