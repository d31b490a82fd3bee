"""The shapes that an encoder may have: BERT's, and that of the recurrent baseline."""

from __future__ import annotations

from typing import Annotated, TypeAlias

from pydantic import Field

from trainer.config import ModelConfig
from trainer.strict_model import PositiveInt, StrictModel


class BiLSTMConfig(StrictModel):
    """Layers of LSTM in both directions, one on the other (Graves and Schmidhuber 2005).

    hidden_size: of a token's state, half of it from each direction. vocab_size: taken from the tokenizer.
    """

    embedding_size: PositiveInt = 128
    hidden_size: Annotated[int, Field(gt=0, multiple_of=2)] = 256
    num_layers: PositiveInt = 2
    type_vocab_size: PositiveInt = 2
    vocab_size: PositiveInt | None = None
    dropout: Annotated[float, Field(ge=0.0, lt=1.0)] = 0.1
    initializer_range: Annotated[float, Field(gt=0.0)] = 0.05


EncoderConfig: TypeAlias = ModelConfig | BiLSTMConfig
