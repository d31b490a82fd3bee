"""How large each layer's weights and the optimiser's first moments are, in any layout."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping

import torch.distributed as dist
from torch import Tensor

from trainer.fragments import WEIGHT

# What optimisers call the running mean of the gradient.
_KINDS = {WEIGHT: "weight_norm", "exp_avg": "moment_norm", "momentum_buffer": "moment_norm"}


def layer_norms(held: Iterable[tuple[str, Mapping[str, Tensor]]]) -> dict[str, float]:
    """L2 norms by metric key, `layers/weight_norm/LAYER` and `layers/moment_norm/LAYER`; collective, waits for devices.

    `held` are this rank's pieces: a parameter's name and tensors of some of its elements by kind. Together the ranks
    hold every element once. There are no moments before the first update, nor for an optimiser that keeps none.
    """
    own: dict[str, float] = {}
    for name, tensors in held:
        for kind, metric in _KINDS.items():
            if kind in tensors:
                key = f"layers/{metric}/{layer_of(name)}"
                own[key] = own.get(key, 0.0) + float(tensors[kind].double().square().sum())
    of_ranks: list[dict[str, float] | None] = [None] * dist.get_world_size()
    dist.all_gather_object(of_ranks, own)
    squares: dict[str, float] = {}
    for of_rank in of_ranks:
        for key, square in (of_rank or {}).items():
            squares[key] = squares.get(key, 0.0) + square
    return {key: square**0.5 for key, square in sorted(squares.items())}


def layer_of(parameter: str) -> str:
    """`layer_03` for what is in an encoder layer, else the name of the part: embeddings, final_norm, head, pooler."""
    if numbered := re.search(r"\blayers\.(\d+)\.", parameter):
        return f"layer_{int(numbered[1]):02d}"
    return parameter.removeprefix("encoder.").split(".")[0]
