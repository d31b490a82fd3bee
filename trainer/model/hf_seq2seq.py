"""An encoder and a decoder as a folder that `transformers` loads as an EncoderDecoderModel."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from torch import Tensor

from trainer.config import ModelConfig
from trainer.errors import UserError
from trainer.model.encoder import sinusoidal_table
from trainer.model.export_folder import MARK, check_out, export_folder
from trainer.model.hf_config import to_hf_config
from trainer.model.hf_names import POSITION_WEIGHT, WORD_WEIGHT, hf_names
from trainer.model.hf_tokenizer import export_tokenizer
from trainer.model.safetensors_file import write_safetensors

_CROSS_ATTENTION = {
    "cross_attention_norm": "crossattention.output.LayerNorm",
    "cross_attention.query": "crossattention.self.query",
    "cross_attention.key": "crossattention.self.key",
    "cross_attention.value": "crossattention.self.value",
    "cross_attention.output": "crossattention.output.dense",
}
_DECODER_BIAS = "head.predictions.decoder.bias"
_PAD_ID = 0


class WritingSettings(NamedTuple):
    """How `generate` is to write: the marks of a text's beginning and end, its most tokens with both, the beams."""

    start_id: int
    end_id: int
    max_length: int
    beams: int


def export_encoder_decoder(
    model_state: Mapping[str, Tensor],
    *,
    config: ModelConfig,
    tokenizer_folder: Path,
    out: Path,
    max_seq_len: int,
    writing: WritingSettings,
) -> None:
    """Write config, weights and tokenizer into `out`, whole or not at all; called on one rank.

    `model_state` has a task's model by parameter name: `encoder.`, `head.decoder.`, `head.predictions.`, the word
    embedding that they share among the encoder's; the folder holds it once for each half. UserError for a pre-norm
    model, a tokenizer that cannot be expressed or is larger than the vocabulary, an `out` that holds something else.
    """
    if config.norm == "pre":
        # Seen in transformers 5.23: MegatronBertSelfAttention gives the source's keys the shape of the queries.
        raise UserError(
            "model.norm=pre: the library's decoder of that form cannot look at sources of another length; only "
            "encoder-decoders with norm: post are exported"
        )
    weights = {name: weight.detach().cpu() for name, weight in model_state.items()}
    check_out(out)
    with export_folder(out) as folder:
        rows = len(weights[WORD_WEIGHT])
        size = export_tokenizer(tokenizer_folder, out=folder, max_seq_len=max_seq_len) or rows
        if size > rows:
            raise UserError(f"{tokenizer_folder} has {size} pieces and the model vocab_size={rows}: not its tokenizer")
        # No text can ever reach rows beyond the tokenizer's vocabulary.
        weights |= {name: weights[name][:size] for name in (WORD_WEIGHT, _DECODER_BIAS)}
        write_safetensors(folder / "model.safetensors", _stored(weights, config), metadata={"format": "pt"})
        dtype = str(weights[WORD_WEIGHT].dtype).removeprefix("torch.")
        content = _model_config(config.model_copy(update={"vocab_size": size}), dtype=dtype, writing=writing)
        _write_json(folder / "config.json", content)
        _write_json(folder / "generation_config.json", _generation_config(writing))


def _stored(weights: Mapping[str, Tensor], config: ModelConfig) -> dict[str, Tensor]:
    """The weights by Hugging Face's names."""
    tables = {WORD_WEIGHT: weights[WORD_WEIGHT]}
    if config.positions == "sinusoidal":
        tables[POSITION_WEIGHT] = sinusoidal_table(config).to(weights[WORD_WEIGHT].dtype)
    copies = {_in_decoder(name): table.clone() for name, table in tables.items()}
    names = {own: f"encoder.{hf}" for own, hf in hf_names(config).items() if own.startswith("encoder.")}
    names |= _decoder_names(config)
    return {names[name]: weight.contiguous() for name, weight in {**weights, **tables, **copies}.items()}


def _in_decoder(name: str) -> str:
    """What the decoder calls its like of an encoder's weight."""
    return f"head.decoder.{name.removeprefix('encoder.')}"


def _decoder_names(config: ModelConfig) -> dict[str, str]:
    """Own name -> Hugging Face's, for decoder and head."""
    names = {}
    for own, hf in hf_names(config).items():
        if own.startswith("encoder."):
            names[_in_decoder(own)] = f"decoder.bert.{hf}"
        elif own.startswith("head."):
            names[f"head.predictions.{own.removeprefix('head.')}"] = f"decoder.{hf}"
    for number in range(config.num_layers):
        for own, hf in _CROSS_ATTENTION.items():
            for part in ("weight", "bias"):
                theirs = f"decoder.bert.encoder.layer.{number}.{hf}.{part}"
                names[f"head.decoder.layers.{number}.{own}.{part}"] = theirs
    return names


def _model_config(config: ModelConfig, *, dtype: str, writing: WritingSettings) -> dict[str, Any]:
    half = to_hf_config(config, suffix="Model", dtype=dtype)
    decoder = {"architectures": ["BertLMHeadModel"], "is_decoder": True, "add_cross_attention": True}
    return {
        "architectures": ["EncoderDecoderModel"],
        "model_type": "encoder-decoder",
        "is_encoder_decoder": True,
        "encoder": half,
        "decoder": half | decoder,
        "decoder_start_token_id": writing.start_id,
        "eos_token_id": writing.end_id,
        "pad_token_id": _PAD_ID,
        "vocab_size": config.vocab_size,
        "dtype": dtype,
        **MARK,
    }


def _generation_config(writing: WritingSettings) -> dict[str, Any]:
    return {
        "decoder_start_token_id": writing.start_id,
        "eos_token_id": writing.end_id,
        "pad_token_id": _PAD_ID,
        "max_length": writing.max_length,
        "num_beams": writing.beams,
    }


def _write_json(path: Path, content: Mapping[str, Any]) -> None:
    path.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
