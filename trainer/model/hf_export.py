"""A trained model as a folder that `transformers` loads."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from trainer.config import ModelConfig
from trainer.errors import UserError
from trainer.model.encoder import sinusoidal_table
from trainer.model.export_folder import MARK, check_out, export_folder
from trainer.model.hf_config import Suffix, TaskSuffix, to_hf_config
from trainer.model.hf_names import (
    BASE_PREFIXES,
    DECODER_BIAS,
    HEAD_PARTS,
    PAIR_WEIGHT,
    POSITION_WEIGHT,
    TIED_WEIGHT,
    WORD_WEIGHT,
    check_weights,
    hf_names,
    weight_shapes,
)
from trainer.model.hf_tokenizer import export_tokenizer
from trainer.model.safetensors_file import write_safetensors

# By the class's suffix: the pipeline that shows it, and a text for it.
_PIPELINES = {
    "MaskedLM": ("fill-mask", "The capital is [MASK]."),
    "PreTraining": ("fill-mask", "The capital is [MASK]."),
    "SequenceClassification": ("text-classification", "The capital is large."),
    "TokenClassification": ("token-classification", "The capital is large."),
}


class HfHead(NamedTuple):
    """A task's head on an exported encoder.

    suffix: of its class. weights: by Hugging Face's names. settings: what config.json says of it besides.
    """

    suffix: TaskSuffix
    weights: Mapping[str, Tensor]
    settings: Mapping[str, Any]


def export_hf(
    model_state: Mapping[str, Tensor],
    *,
    config: ModelConfig,
    tokenizer_folder: Path,
    out: Path,
    max_seq_len: int,
    head: HfHead | None = None,
) -> None:
    """Write config, weights, tokenizer and a model card into `out`, whole or not at all; called on one rank.

    `model_state` is a model's `state_dict`: the encoder, with any of MLM head, pooler and pair head. The folder holds
    the class of `head` where one is given, a (Megatron)BertForPreTraining where there are all three, a
    (Megatron|Modern)BertForMaskedLM where there is an MLM head but no pair head, else a (Megatron|Modern)BertModel. A
    former export in `out` is replaced. UserError for weights that do not fit `config`, for a tokenizer that cannot be
    expressed or is larger than the vocabulary, and for an `out` that holds something else.
    """
    check_out(out)
    weights = _stored_weights(model_state, config)
    if max_seq_len > config.max_positions:
        raise UserError(f"max_seq_len={max_seq_len} is longer than model.max_positions={config.max_positions}")
    with export_folder(out) as partial:
        vocabulary = export_tokenizer(tokenizer_folder, out=partial, max_seq_len=max_seq_len)
        if vocabulary is not None:
            weights = _trim_vocabulary(weights, size=vocabulary, tokenizer_folder=tokenizer_folder)
        shape = config.model_copy(update={"vocab_size": len(weights[WORD_WEIGHT])})
        _write_model(weights, shape, partial, head=head)


def _stored_weights(model_state: Mapping[str, Tensor], config: ModelConfig) -> dict[str, Tensor]:
    """The weights to store, checked against `config`: by own name, on the CPU, the position table among them."""
    weights = {name: weight.detach().cpu() for name, weight in model_state.items()}
    tied = weights.pop(TIED_WEIGHT, None)
    if tied is not None and WORD_WEIGHT in weights and not torch.equal(tied, weights[WORD_WEIGHT]):
        raise UserError(f"{TIED_WEIGHT} differs from {WORD_WEIGHT}: the MLM decoder must be the word embedding itself")
    shapes = weight_shapes(config)
    absent = {part for part in HEAD_PARTS if not any(name.startswith(f"{part}.") for name in weights)}
    expected = {name: shape for name, shape in shapes.items() if name.partition(".")[0] not in absent}
    if config.positions == "sinusoidal" and POSITION_WEIGHT not in weights and WORD_WEIGHT in weights:
        weights[POSITION_WEIGHT] = sinusoidal_table(config).to(weights[WORD_WEIGHT].dtype)
    check_weights(weights, expected, source="the model")
    return weights


def _trim_vocabulary(weights: dict[str, Tensor], *, size: int, tokenizer_folder: Path) -> dict[str, Tensor]:
    """Cut rows beyond the tokenizer's vocabulary, which no text can ever reach."""
    have = len(weights[WORD_WEIGHT])
    if have < size:
        raise UserError(f"the model has vocab_size={have} but {tokenizer_folder} has {size} pieces: not its tokenizer")
    per_word = {WORD_WEIGHT, DECODER_BIAS} & weights.keys()
    return weights | {name: weights[name][:size] for name in per_word}


def _write_model(weights: Mapping[str, Tensor], config: ModelConfig, folder: Path, *, head: HfHead | None) -> None:
    names = hf_names(config)
    # In a BertForMaskedLM the encoder is the part named `bert`; a BertModel is that part itself.
    prefix = BASE_PREFIXES[config.family] if head is not None or DECODER_BIAS in weights else ""
    stored = {
        ("" if name.startswith(("head.", "pair_head.")) else prefix) + names[name]: weight.contiguous()
        for name, weight in weights.items()
    }
    if head is not None:
        stored |= {name: weight.contiguous() for name, weight in head.weights.items()}
    write_safetensors(folder / "model.safetensors", stored, metadata={"format": "pt"})
    dtype = str(weights[WORD_WEIGHT].dtype).removeprefix("torch.")
    suffix = head.suffix if head is not None else class_suffix(weights)
    content = to_hf_config(config, suffix=suffix, dtype=dtype) | dict(head.settings if head is not None else {}) | MARK
    (folder / "config.json").write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    (folder / "README.md").write_text(_model_card(config, content["architectures"][0], stored), encoding="utf-8")


def class_suffix(weights: Mapping[str, Tensor]) -> Suffix:
    """Of the class that has the heads of pretraining which there are weights for."""
    if DECODER_BIAS not in weights:
        return "Model"
    return "ForPreTraining" if PAIR_WEIGHT in weights else "ForMaskedLM"


def _model_card(config: ModelConfig, architecture: str, stored: Mapping[str, Tensor]) -> str:
    count = sum(weight.numel() for weight in stored.values())
    tag, example = _PIPELINES.get(architecture.partition("For")[2], ("", ""))
    task = f"pipeline_tag: {tag}\n" if tag else ""
    if tag:
        load = f"from transformers import pipeline\n\nprint(pipeline('{tag}', model='.')('{example}'))"
    else:
        load = "from transformers import AutoModel\n\nmodel = AutoModel.from_pretrained('.')"
    norm = "pre" if config.family == "modernbert" else config.norm
    has_pooler = any(name.endswith("pooler.dense.weight") for name in stored)
    pooler = "" if config.family == "modernbert" or has_pooler else "\nThere is no pooler: none was trained.\n"
    return f"""---
library_name: transformers
{task}---
# {architecture}, {count / 1e6:.1f} M parameters

{config.num_layers} layers x {config.hidden_size} with {config.num_heads} heads, {norm}-norm; a vocabulary of
{config.vocab_size}; up to {config.max_positions} tokens. Written by Bertline.
{pooler}
```python
{load}
```
"""
