"""Which of this encoder's weights is which in Hugging Face's BertModel, MegatronBertModel and ModernBertModel."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from trainer.config import ModelConfig
from trainer.errors import UserError
from trainer.model.bert import BertForMaskedLanguageModel
from trainer.model.pretraining import BertForPreTraining

WORD_WEIGHT = "encoder.embeddings.word.weight"
POSITION_WEIGHT = "encoder.embeddings.position.weight"
# The decoder is the word embedding's own Parameter: in a state by this second name, never stored twice.
TIED_WEIGHT = "head.decoder.weight"
DECODER_BIAS = "head.decoder.bias"
PAIR_WEIGHT = "pair_head.weight"

_LAYER = {
    "attention.query": "attention.self.query",
    "attention.key": "attention.self.key",
    "attention.value": "attention.self.value",
    "attention.output": "attention.output.dense",
    "feed_forward.up": "intermediate.dense",
    "feed_forward.down": "output.dense",
}
_LAYER_NORMS = {
    "post": {"attention_norm": "attention.output.LayerNorm", "feed_forward_norm": "output.LayerNorm"},
    "pre": {"attention_norm": "attention.ln", "feed_forward_norm": "ln"},
}
_OUTER_NORM = {
    "post": {"encoder.embeddings.norm": "embeddings.LayerNorm"},
    "pre": {"encoder.final_norm": "encoder.ln"},
}
_HEAD = {"head.dense": "cls.predictions.transform.dense", "head.norm": "cls.predictions.transform.LayerNorm"}
_POOLER = {"pooler.dense": "pooler.dense"}
_PAIR_HEAD = {"pair_head": "cls.seq_relationship"}
_MODERN_LAYER = {
    "attention_norm": "attn_norm",
    "attention.query_key_value": "attn.Wqkv",
    "attention.output": "attn.Wo",
    "feed_forward_norm": "mlp_norm",
    "feed_forward.up": "mlp.Wi",
    "feed_forward.down": "mlp.Wo",
}
_MODERN_OUTER = {
    "encoder.embeddings.word": "embeddings.tok_embeddings",
    "encoder.embeddings.norm": "embeddings.norm",
    "encoder.final_norm": "final_norm",
    "head.dense": "head.dense",
    "head.norm": "head.norm",
}
# The part of Hugging Face's models with heads that is the encoder (and BERT's pooler).
BASE_PREFIXES = {"bert": "bert.", "modernbert": "model."}
# What stands on the encoder; a state may lack any of them.
HEAD_PARTS = ("head", "pooler", "pair_head")


def hf_names(config: ModelConfig) -> dict[str, str]:
    """Own name -> Hugging Face's name without that of the base model, for every stored weight of encoder and heads."""
    if config.family == "modernbert":
        return _modern_names(config)
    layer = _LAYER | _LAYER_NORMS[config.norm]
    modules = _OUTER_NORM[config.norm] | _HEAD | _POOLER | _PAIR_HEAD
    for number in range(config.num_layers):
        modules |= {f"encoder.layers.{number}.{own}": f"encoder.layer.{number}.{hf}" for own, hf in layer.items()}
    names = {f"{own}.{part}": f"{hf}.{part}" for own, hf in modules.items() for part in ("weight", "bias")}
    for table in ("word", "position", "token_type"):
        names[f"encoder.embeddings.{table}.weight"] = f"embeddings.{table}_embeddings.weight"
    names[DECODER_BIAS] = "cls.predictions.bias"
    return names


def _modern_names(config: ModelConfig) -> dict[str, str]:
    modules = dict(_MODERN_OUTER)
    for number in range(config.num_layers):
        modules |= {f"encoder.layers.{number}.{own}": f"layers.{number}.{hf}" for own, hf in _MODERN_LAYER.items()}
    del modules["encoder.layers.0.attention_norm"]
    return {f"{own}.weight": f"{hf}.weight" for own, hf in modules.items()} | {DECODER_BIAS: "decoder.bias"}


def weight_shapes(config: ModelConfig) -> dict[str, tuple[int, ...]]:
    """Own name -> shape, for every stored weight of encoder and heads, positions as a learned table.

    ModernBERT has no pooler and no pair head.
    """
    learned = config.model_copy(update={"positions": "learned"})
    with torch.device("meta"):
        model = (
            BertForMaskedLanguageModel(learned)
            if config.family == "modernbert"
            else BertForPreTraining(learned, candidates=1)
        )
        state = model.state_dict()
    return {name: tuple(weight.shape) for name, weight in state.items() if name != TIED_WEIGHT}


def check_weights(weights: Mapping[str, Tensor], shapes: Mapping[str, tuple[int, ...]], *, source: str) -> None:
    """Raise a UserError naming the first weights that are missing, unknown or of another shape than `shapes` says."""
    missing, unknown = sorted(shapes.keys() - weights.keys()), sorted(weights.keys() - shapes.keys())
    for names, what in ((missing, "lacks"), (unknown, "has unknown")):
        if names:
            more = f" and {len(names) - 3} more" if len(names) > 3 else ""
            raise UserError(
                f"{source} {what} weights {', '.join(names[:3])}{more}; does the model section describe it?"
            )
    for name, shape in shapes.items():
        if tuple(weights[name].shape) != shape:
            raise UserError(f"{source}: {name} has shape {tuple(weights[name].shape)}, the model section says {shape}")
