"""A Hugging Face BERT or ModernBERT folder as this encoder's shape and weights."""

from __future__ import annotations

import json
import pickle
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from trainer.config import ModelConfig
from trainer.errors import UserError
from trainer.model.encoder import sinusoidal_table
from trainer.model.hf_config import from_hf_config
from trainer.model.hf_names import (
    BASE_PREFIXES,
    HEAD_PARTS,
    POSITION_WEIGHT,
    check_weights,
    hf_names,
    weight_shapes,
)

_WEIGHT_FILES = ("model.safetensors", "pytorch_model.bin")
# A name under which a weight stands twice, and the first one.
_COPIES = {
    "bert": {
        "cls.predictions.decoder.weight": "embeddings.word_embeddings.weight",
        "cls.predictions.decoder.bias": "cls.predictions.bias",
    },
    "modernbert": {"decoder.weight": "embeddings.tok_embeddings.weight"},
}
_BUFFERS = ("embeddings.position_ids", "embeddings.token_type_ids")


class ImportedModel(NamedTuple):
    """What a folder holds, and what it does not."""

    config: ModelConfig
    weights: dict[str, Tensor]
    """By parameter name (the tied decoder is the word embedding), types as stored."""
    missing: tuple[str, ...]
    """Parts without weights in the folder, of `HEAD_PARTS`: they must be trained, nothing is made up."""


def import_hf(folder: Path) -> ImportedModel:
    """Read a BertModel, BertForMaskedLM or BertForPreTraining, one's MegatronBert or one of the first two's ModernBert
    form.

    Weights come from safetensors or `pytorch_model.bin` (loaded without running code), whole or sharded, with
    or without the base model's prefix. UserError for another architecture, for config values that this encoder
    lacks, and for weights that are missing, unknown or of another shape.
    """
    path = folder / "config.json"
    config = from_hf_config(_read_json(path), source=path)
    prefix = BASE_PREFIXES[config.family]
    stored = {_plain_name(name, prefix=prefix): weight for name, weight in _read_weights(folder).items()}
    stored = {name: weight for name, weight in stored.items() if name not in _BUFFERS}
    _drop_tied(stored, folder, family=config.family)
    own_names = {hf: own for own, hf in hf_names(config).items()}
    weights = {own_names.get(name, name): weight for name, weight in stored.items()}
    missing = tuple(part for part in HEAD_PARTS if not any(name.startswith(f"{part}.") for name in weights))
    shapes = weight_shapes(config)
    expected = {name: shape for name, shape in shapes.items() if name.partition(".")[0] not in missing}
    check_weights(weights, expected, source=str(folder))
    learned = POSITION_WEIGHT in weights
    if learned and torch.equal(weights[POSITION_WEIGHT], sinusoidal_table(config).to(weights[POSITION_WEIGHT].dtype)):
        config = config.model_copy(update={"positions": "sinusoidal"})
        del weights[POSITION_WEIGHT]
    return ImportedModel(config, weights, missing)


def _drop_tied(stored: dict[str, Tensor], folder: Path, *, family: str) -> None:
    """Remove the decoder's second copies of the word embedding and of its bias; refuse a decoder of its own."""
    for copied, original in _COPIES[family].items():
        copy = stored.pop(copied, None)
        if copy is not None and not torch.equal(copy, stored.setdefault(original, copy)):
            raise UserError(f"{folder}: {copied} differs from {original}; an untied decoder is not supported")


def _plain_name(name: str, *, prefix: str) -> str:
    name = name.removeprefix(prefix)
    if "LayerNorm" in name:
        name = name.replace(".gamma", ".weight").replace(".beta", ".bias")
    return name


def _read_json(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UserError(f"{path} does not exist; name a folder that holds a Hugging Face model") from None
    except ValueError as error:
        raise UserError(f"{path} is not JSON ({error})") from None
    if not isinstance(content, dict):
        raise UserError(f"{path} holds a {type(content).__name__}, expected an object")
    return content


def _read_weights(folder: Path) -> dict[str, Tensor]:
    for name in _WEIGHT_FILES:
        if (folder / name).is_file():
            return _read_weight_file(folder / name)
        index = folder / f"{name}.index.json"
        if index.is_file():
            parts = sorted(set(_read_json(index).get("weight_map", {}).values()))
            return {key: weight for part in parts for key, weight in _read_weight_file(folder / part).items()}
    raise UserError(f"{folder} holds no weights: expected {' or '.join(_WEIGHT_FILES)}, or their .index.json")


def _read_weight_file(path: Path) -> dict[str, Tensor]:
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        if path.suffix == ".safetensors":
            return load_file(path)
        weights: dict[str, Tensor] = torch.load(path, map_location="cpu", weights_only=True)
        return weights
    except FileNotFoundError:
        raise UserError(
            f"{path} is named by the index beside it but does not exist; download the model again"
        ) from None
    except (SafetensorError, pickle.UnpicklingError, RuntimeError, EOFError) as error:
        reason = str(error).partition("\n")[0]
        raise UserError(f"{path} cannot be read as weights ({reason}); download the model again") from None
