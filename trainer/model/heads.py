"""What stands on the encoder in pretraining: the masked-language-model head, the pooler and the pair head."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from trainer.config import ModelConfig
from trainer.encoder_config import EncoderConfig
from trainer.model.encoder import ACTIVATIONS, layer_norm, vocab_size


class MaskedLanguageModelHead(nn.Module):
    """Dense, activation, norm, then the word embedding's own matrix as decoder (Devlin et al. 2019, appendix A).

    In family modernbert only the decoder has a bias.
    """

    def __init__(self, config: ModelConfig, *, word: nn.Embedding) -> None:
        super().__init__()
        self.dense = nn.Linear(config.hidden_size, config.hidden_size, bias=config.family == "bert")
        self.activation = ACTIVATIONS[config.activation]
        self.norm = layer_norm(config)
        self.decoder = nn.Linear(config.hidden_size, vocab_size(config), device="meta")
        # One Parameter in two modules: ZeRO-3 then gathers it for each of them by that module's own hooks.
        self.decoder.weight = word.weight
        self.decoder.bias = nn.Parameter(torch.zeros(vocab_size(config)))

    def forward(self, hidden: Tensor) -> Tensor:
        """[R, hidden] -> logits [R, vocab]."""
        logits: Tensor = self.decoder(self.norm(self.activation(self.dense(hidden))))
        return logits


class Pooler(nn.Module):
    """Dense and tanh over a document's first token (Devlin et al. 2019, section 3.1)."""

    def __init__(self, config: EncoderConfig) -> None:
        super().__init__()
        self.dense = nn.Linear(config.hidden_size, config.hidden_size)

    def forward(self, first_tokens: Tensor) -> Tensor:
        """[num_docs, hidden] -> [num_docs, hidden]."""
        pooled: Tensor = self.dense(first_tokens).tanh()
        return pooled


class PairHead(nn.Linear):
    """Scores of a pooled pair for "B belongs here" (0) and "it does not" (1) (Devlin et al. 2019, section 3.1)."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__(config.hidden_size, 2)
