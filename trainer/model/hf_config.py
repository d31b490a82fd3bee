"""The model's shape as Hugging Face's `config.json`, and back."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal, TypeAlias

from pydantic import ValidationError

from trainer.config import ModelConfig
from trainer.errors import UserError
from trainer.model.hf_modernbert import MODERNBERT, modernbert_fields, to_modernbert_config
from trainer.model.hf_values import ACTIVATION_NAMES, check_values, own_activation, own_fields

# Family bert: post-norm is BertModel; pre-norm, with a final norm, none after the embeddings, is MegatronBertModel.
MODEL_TYPES: dict[str, str] = {"post": "bert", "pre": "megatron-bert"}
CLASS_PREFIXES: dict[str, str] = {"post": "Bert", "pre": "MegatronBert"}
_IMPORTED_CLASSES = {
    prefix + suffix for prefix in CLASS_PREFIXES.values() for suffix in ("Model", "ForMaskedLM", "ForPreTraining")
} | {"ModernBertModel", "ModernBertForMaskedLM"}
TaskSuffix: TypeAlias = Literal["ForSequenceClassification", "ForTokenClassification"]
Suffix: TypeAlias = Literal["Model", "ForMaskedLM", "ForPreTraining"] | TaskSuffix
_FIELDS = {
    "hidden_size": "hidden_size",
    "num_layers": "num_hidden_layers",
    "num_heads": "num_attention_heads",
    "intermediate_size": "intermediate_size",
    "max_positions": "max_position_embeddings",
    "type_vocab_size": "type_vocab_size",
    "vocab_size": "vocab_size",
    "hidden_dropout": "hidden_dropout_prob",
    "attention_dropout": "attention_probs_dropout_prob",
    "layer_norm_eps": "layer_norm_eps",
    "initializer_range": "initializer_range",
}
# Values that change what the model computes in ways this encoder does not have, and the only one it takes.
_FIXED_VALUES: dict[str, Any] = {
    "position_embedding_type": "absolute",
    "is_decoder": False,
    "add_cross_attention": False,
    "tie_word_embeddings": True,
    "quantization_config": None,
}


def to_hf_config(config: ModelConfig, *, suffix: Suffix, dtype: str) -> dict[str, Any]:
    """`config.json`'s content for the class named by `suffix`, weights stored as `dtype` ("float32", ...)."""
    if config.family == "modernbert":
        return to_modernbert_config(config, architecture=f"ModernBert{suffix}", dtype=dtype)
    return {
        "architectures": [CLASS_PREFIXES[config.norm] + suffix],
        "model_type": MODEL_TYPES[config.norm],
        "hidden_act": ACTIVATION_NAMES[config.activation],
        **{hf: getattr(config, own) for own, hf in _FIELDS.items()},
        "pad_token_id": 0,
        "tie_word_embeddings": True,
        "dtype": dtype,
    }


def from_hf_config(values: dict[str, Any], *, source: Path) -> ModelConfig:
    """The model's shape from a `config.json`'s content, learned positions; UserError for what is not supported."""
    norms = {hf: own for own, hf in MODEL_TYPES.items()}
    model_type = values.get("model_type")
    if model_type not in (*norms, MODERNBERT):
        supported = ", ".join((*norms, MODERNBERT))
        raise UserError(f"{source}: model_type={model_type!r} is not supported; supported are {supported}")
    for name in values.get("architectures") or []:
        if name not in _IMPORTED_CLASSES:
            raise UserError(
                f"{source}: architecture {name} is not supported; supported are {', '.join(sorted(_IMPORTED_CLASSES))}"
            )
    if model_type == MODERNBERT:
        fields = modernbert_fields(values, source=source)
    else:
        check_values(values, _FIXED_VALUES, source=source)
        activation = own_activation(values, key="hidden_act", source=source)
        fields = own_fields(values, _FIELDS, needed=list(_FIELDS.values())[:7], source=source)
        fields |= {"norm": norms[model_type], "activation": activation}
    try:
        return ModelConfig(**fields)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"])
        raise UserError(f"{source}: {where} {first['msg']} (value {first['input']!r})") from None
