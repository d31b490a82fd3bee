"""The recipe's model section: the encoder's family, shape and dropout."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from trainer.strict_model import PositiveInt, StrictModel

# What only one family has.
_FAMILY_KEYS = {
    "bert": ("norm", "positions", "type_vocab_size"),
    "modernbert": ("local_window", "global_every", "local_rope_theta", "global_rope_theta"),
}


class ModelConfig(StrictModel):
    """The encoder's shape and dropout; `vocab_size` is taken from the tokenizer when it is left out.

    embedding_dropout: None takes hidden_dropout; Hugging Face's BERTs have one rate for both, and export names that.
    family: bert (Devlin et al. 2019), or modernbert (Warner et al. 2024): pre-norm, no biases, rotary positions, gated
    feed-forward layers, in which hidden_dropout is; attention sees `local_window` tokens around its own, and in layer 0
    and each `global_every`-th after it the whole document.
    """

    family: Literal["bert", "modernbert"] = "bert"

    hidden_size: PositiveInt = 768
    num_layers: PositiveInt = 12
    num_heads: PositiveInt = 12
    intermediate_size: PositiveInt = 3072
    max_positions: PositiveInt = 512
    type_vocab_size: PositiveInt = 2
    vocab_size: PositiveInt | None = None
    norm: Literal["post", "pre"] = "post"
    positions: Literal["learned", "sinusoidal"] = "learned"
    activation: Literal["gelu", "gelu_tanh", "relu"] = "gelu"
    embedding_dropout: Annotated[float, Field(ge=0.0, lt=1.0)] | None = None
    hidden_dropout: Annotated[float, Field(ge=0.0, lt=1.0)] = 0.1
    attention_dropout: Annotated[float, Field(ge=0.0, lt=1.0)] = 0.1
    layer_norm_eps: Annotated[float, Field(gt=0.0)] = 1e-12
    initializer_range: Annotated[float, Field(gt=0.0)] = 0.02
    local_window: Annotated[int, Field(gt=0, multiple_of=2)] = 128
    global_every: PositiveInt = 3
    local_rope_theta: Annotated[float, Field(gt=0.0)] = 10_000.0
    global_rope_theta: Annotated[float, Field(gt=0.0)] = 160_000.0

    @model_validator(mode="after")
    def _family_has_its_keys(self) -> ModelConfig:
        for family, keys in _FAMILY_KEYS.items():
            for key in keys:
                if self.family != family and getattr(self, key) != type(self).model_fields[key].default:
                    raise ValueError(
                        f"{key}={getattr(self, key)} belongs to family: {family}, and has no effect in family: "
                        f"{self.family}; remove it"
                    )
        if self.family == "modernbert" and self.hidden_size // self.num_heads % 2:
            raise ValueError(
                f"hidden_size={self.hidden_size} / num_heads={self.num_heads} is odd, and rotary positions turn pairs "
                f"of numbers; use hidden_size={self.hidden_size + self.num_heads}"
            )
        return self

    @model_validator(mode="after")
    def _heads_divide(self) -> ModelConfig:
        if self.hidden_size % self.num_heads:
            raise ValueError(
                f"hidden_size={self.hidden_size} is not divisible by num_heads={self.num_heads}; "
                f"use hidden_size={-(-self.hidden_size // self.num_heads) * self.num_heads}"
            )
        return self
