"""A ModernBERT's shape as Hugging Face's `config.json`, and back."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from trainer.config import ModelConfig
from trainer.errors import UserError
from trainer.model.hf_values import ACTIVATION_NAMES, check_values, own_activation, own_fields

MODERNBERT = "modernbert"
_FIELDS = {
    "hidden_size": "hidden_size",
    "num_layers": "num_hidden_layers",
    "num_heads": "num_attention_heads",
    "intermediate_size": "intermediate_size",
    "max_positions": "max_position_embeddings",
    "vocab_size": "vocab_size",
    "local_window": "local_attention",
    "embedding_dropout": "embedding_dropout",
    "hidden_dropout": "mlp_dropout",
    "attention_dropout": "attention_dropout",
    "layer_norm_eps": "norm_eps",
    "initializer_range": "initializer_range",
}
_NEEDED = list(_FIELDS.values())[:6]
# What transformers takes where a config.json leaves it out, and this encoder has otherwise.
_DEFAULTS = {"embedding_dropout": 0.0, "mlp_dropout": 0.0, "attention_dropout": 0.0, "norm_eps": 1e-5}
_FIXED_VALUES: dict[str, Any] = {
    "norm_bias": False,
    "attention_bias": False,
    "mlp_bias": False,
    "classifier_bias": False,
    "decoder_bias": True,
    "tie_word_embeddings": True,
    "quantization_config": None,
}
_GLOBAL, _LOCAL = "full_attention", "sliding_attention"
# By kind of layer: its key in older files, and what it is where there is none.
_THETAS = {_GLOBAL: ("global_rope_theta", 160_000.0), _LOCAL: ("local_rope_theta", 10_000.0)}


def to_modernbert_config(config: ModelConfig, *, architecture: str, dtype: str) -> dict[str, Any]:
    """`config.json`'s content; older and newer names of what transformers has renamed stand side by side."""
    activation = ACTIVATION_NAMES[config.activation]
    thetas = {_GLOBAL: config.global_rope_theta, _LOCAL: config.local_rope_theta}
    own = config.embedding_dropout
    return {
        "architectures": [architecture],
        "model_type": MODERNBERT,
        **{hf: getattr(config, own) for own, hf in _FIELDS.items()},
        "embedding_dropout": config.hidden_dropout if own is None else own,
        "hidden_activation": activation,
        "classifier_activation": activation,
        "layer_types": _layer_types(config.num_layers, global_every=config.global_every),
        "global_attn_every_n_layers": config.global_every,
        "rope_parameters": {kind: {"rope_type": "default", "rope_theta": theta} for kind, theta in thetas.items()},
        **{_THETAS[kind][0]: theta for kind, theta in thetas.items()},
        **{key: value for key, value in _FIXED_VALUES.items() if key != "quantization_config"},
        "pad_token_id": 0,
        # The tokenizer knows these; what transformers would put here are tokens of another vocabulary.
        **dict.fromkeys(("bos_token_id", "eos_token_id", "cls_token_id", "sep_token_id")),
        "dtype": dtype,
    }


def modernbert_fields(values: Mapping[str, Any], *, source: Path) -> dict[str, Any]:
    """The keys of the model section from a `config.json`'s content; UserError for what is not supported."""
    check_values(values, _FIXED_VALUES, source=source)
    activation = own_activation(values, key="hidden_activation", source=source)
    if own_activation(values, key="classifier_activation", source=source) != activation:
        raise UserError(f"{source}: classifier_activation is not hidden_activation, which is not supported")
    return {
        "family": "modernbert",
        "activation": activation,
        "global_every": _global_every(values, source=source),
        "global_rope_theta": _theta(values, _GLOBAL, source=source),
        "local_rope_theta": _theta(values, _LOCAL, source=source),
        **own_fields({**_DEFAULTS, **values}, _FIELDS, needed=_NEEDED, source=source),
    }


def _layer_types(num_layers: int, *, global_every: int) -> list[str]:
    return [_LOCAL if number % global_every else _GLOBAL for number in range(num_layers)]


def _global_every(values: Mapping[str, Any], *, source: Path) -> int:
    """After how many layers attention is global again, from the kinds of all layers where they are listed."""
    kinds = values.get("layer_types")
    if kinds is None:
        return int(values.get("global_attn_every_n_layers", 3))
    again = [number for number, kind in enumerate(kinds) if kind == _GLOBAL and number > 0]
    # With one global layer alone, every number of layers or more means the same.
    every = again[0] if again else max(3, len(kinds))
    if kinds != _layer_types(len(kinds), global_every=every):
        raise UserError(
            f"{source}: layer_types is not supported: attention must be global in layer 0 and then in each n-th layer"
        )
    return every


def _theta(values: Mapping[str, Any], kind: str, *, source: Path) -> float:
    older_key, default = _THETAS[kind]
    rope = (values.get("rope_parameters") or {}).get(kind) or {}
    if rope.get("rope_type", "default") != "default" or values.get("rope_scaling") is not None:
        raise UserError(f"{source}: scaled rotary positions are not supported; rope_type must be 'default'")
    return float(rope.get("rope_theta") or values.get(older_key) or default)
