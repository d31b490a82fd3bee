"""Putting weights into a model by parameter name."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from trainer.errors import UserError


@torch.no_grad()
def load_weights(model: nn.Module, weights: Mapping[str, Tensor], *, source: str) -> None:
    """Copy every weight into the parameter of its name; a tied parameter has one name.

    Raises UserError, naming `source`, unless names and shapes are exactly the model's.
    """
    parameters = dict(model.named_parameters())
    wrong = sorted(parameters.keys() ^ weights.keys())
    wrong += [name for name in parameters.keys() & weights.keys() if parameters[name].shape != weights[name].shape]
    if wrong:
        raise UserError(
            f"{source} belongs to another model: {len(wrong)} parameters differ in name or shape, {wrong[0]} among "
            "them; use the recipe it was trained with"
        )
    for name, parameter in parameters.items():
        parameter.copy_(weights[name])
