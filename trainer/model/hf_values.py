"""Reading values of a Hugging Face `config.json`, whatever the model's family; what is not supported is refused."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from trainer.errors import UserError

ACTIVATION_NAMES = {"gelu": "gelu", "gelu_tanh": "gelu_pytorch_tanh", "relu": "relu"}
_ACTIVATIONS = {**{hf: own for own, hf in ACTIVATION_NAMES.items()}, "gelu_new": "gelu_tanh"}


def check_values(values: Mapping[str, Any], fixed: Mapping[str, Any], *, source: Path) -> None:
    """UserError naming the first value that is there and is not the only one that is supported."""
    for key, expected in fixed.items():
        if values.get(key, expected) != expected:
            raise UserError(f"{source}: {key}={values[key]!r} is not supported; it must be {expected!r}")


def own_activation(values: Mapping[str, Any], *, key: str, source: Path) -> str:
    """Our name of the activation, gelu where none is named."""
    name = values.get(key, "gelu")
    if name not in _ACTIVATIONS:
        raise UserError(f"{source}: {key}={name!r} is not supported; supported are {', '.join(_ACTIVATIONS)}")
    return _ACTIVATIONS[name]


def own_fields(
    values: Mapping[str, Any], names: Mapping[str, str], *, needed: Sequence[str], source: Path
) -> dict[str, Any]:
    """Those of the fields that are there, by our own name; UserError where one that is needed is not."""
    missing = [name for name in needed if name not in values]
    if missing:
        raise UserError(f"{source}: missing {', '.join(missing)}; a model's shape is not guessed")
    return {own: values[hf] for own, hf in names.items() if hf in values}
