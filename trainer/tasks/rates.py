"""Optimiser groups of a task's model: rates that fall from layer to layer, weights that stay as they are."""

from __future__ import annotations

from typing import Any

from torch import nn

from trainer.model.create import parameter_groups
from trainer.tasks.model import TaskModel

_LAYERS = "encoder.layers."


def task_parameter_groups(
    model: TaskModel, *, weight_decay: float, layer_decay: float, frozen_layers: int | None, muon: bool = False
) -> list[dict[str, Any]]:
    """`parameter_groups`, split by depth where layers differ: each group's `rate_scale` multiplies the rate.

    The head and what follows the last layer have 1, the layer below times `layer_decay`, and so on to the embeddings
    (Howard and Ruder 2018, section 3.2). Frozen layers have 0: AdamW leaves them, decay included, bit for bit.
    """
    depths = {id(parameter): depth_of(name, model=model) for name, parameter in model.named_parameters()}
    top = len(model.encoder.layers) + 1
    groups = []
    for group in parameter_groups(model, weight_decay=weight_decay, muon=muon):
        by_scale: dict[float, list[nn.Parameter]] = {}
        for parameter in group["params"]:
            depth = depths[id(parameter)]
            frozen = frozen_layers is not None and depth <= frozen_layers
            by_scale.setdefault(0.0 if frozen else layer_decay ** (top - depth), []).append(parameter)
        groups += [{**group, "params": params, "rate_scale": scale} for scale, params in by_scale.items()]
    return groups


def depth_of(name: str, *, model: TaskModel) -> int:
    """0 for embeddings, n for the n-th layer from 1, one more than there are layers for all above them."""
    if name.startswith("encoder.embeddings."):
        return 0
    if name.startswith(_LAYERS):
        return int(name.removeprefix(_LAYERS).partition(".")[0]) + 1
    return len(model.encoder.layers) + 1
