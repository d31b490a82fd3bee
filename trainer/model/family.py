"""Which encoder a recipe's `model.family` stands for."""

from __future__ import annotations

from trainer.config import ModelConfig
from trainer.model.encoder import BertEncoder, Encoder
from trainer.model.modernbert import ModernBertEncoder


def create_encoder(config: ModelConfig) -> Encoder:
    """A new encoder of the recipe's family, its weights still to be set."""
    return ModernBertEncoder(config) if config.family == "modernbert" else BertEncoder(config)
