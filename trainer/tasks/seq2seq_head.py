"""The decoder as a task's head: its loss under teacher forcing, and the texts that it writes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import Tensor, nn

from trainer.config import ModelConfig
from trainer.model.decoder import BertDecoder, DecoderCache
from trainer.model.heads import MaskedLanguageModelHead
from trainer.model.loss_term import classification_term
from trainer.model.padding import PaddedLayout
from trainer.seq2seq_config import Seq2SeqConfig
from trainer.tasks.model import TaskHead
from trainer.tasks.search import beam_search


@dataclass(frozen=True)
class WritingRules:
    """Where a text begins and ends, in ids, and how many tokens it may have, its end mark included."""

    start: int
    end: int
    max_tokens: int


class Seq2SeqHead(TaskHead):
    """The decoder, and BERT's head over its states; source, target and head share one word embedding.

    Targets are int64 [tokens, 3]: a token that the decoder reads, its position in its sequence, and the token that is
    to follow it, sequence after sequence.
    """

    def __init__(self, config: Seq2SeqConfig, model: ModelConfig, *, rules: WritingRules) -> None:
        super().__init__()
        self._config = config
        self._rules = rules
        self.decoder = BertDecoder(model)
        self.predictions = MaskedLanguageModelHead(model, word=self.decoder.embeddings.word)

    def share_words(self, word: nn.Embedding) -> None:
        """Let the encoder's word embedding have this head's Parameter; ZeRO-3 gathers it for each by its own hooks."""
        word.weight = self.decoder.embeddings.word.weight

    def start_weights(self, start: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The encoder's weights for what the decoder's layers share with it, and the masked-language-model head's."""
        forms = {"encoder.": "decoder.", "head.": "predictions."}
        return {
            own + name.removeprefix(prefix): weight
            for name, weight in start.items()
            for prefix, own in forms.items()
            if name.startswith(prefix)
        }

    def loss(self, hidden: Tensor, row_counts: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        """Cross-entropy of each target token behind the true ones before it, summed; and how many there are."""
        term = classification_term(
            self.logits(hidden, row_counts, targets),
            targets[:, 2],
            count_correct=False,
            label_smoothing=self._config.label_smoothing if self.training else 0.0,
        )
        return term.loss, term.predictions

    def logits(self, hidden: Tensor, row_counts: Tensor, targets: Tensor) -> Tensor:
        """The encoder's states [R, hidden], [sources] of them each, and targets [T, 3] -> logits [T, vocab]."""
        inputs, positions, _ = targets.unbind(1)
        starts = (positions == 0).nonzero().squeeze(1)
        lengths = torch.diff(starts, append=starts.new_tensor([len(positions)]))
        cache = self.decoder.remember(hidden, row_counts)
        states = self.decoder(inputs, positions, layout=PaddedLayout.from_lengths(lengths), cache=cache)
        logits: Tensor = self.predictions(states)
        return logits

    def outputs(self, hidden: Tensor, row_counts: Tensor) -> dict[str, Tensor]:
        """`tokens` int64 [sources, max_tokens], -1 behind the end, and `score` [sources], as `Found` has them."""
        found = beam_search(
            CachedScorer(self, self.decoder.remember(hidden, row_counts)),
            sources=len(row_counts),
            start=self._rules.start,
            end=self._rules.end,
            max_tokens=self._rules.max_tokens,
            beams=self._config.beams,
            length_penalty=self._config.length_penalty,
            device=hidden.device,
            anywhere=self._anywhere,
        )
        return found._asdict()

    def _anywhere(self, going_on: bool) -> bool:
        if not self.collective:
            return going_on
        flag = torch.tensor(float(going_on), device=self.predictions.dense.weight.device)
        dist.all_reduce(flag, op=dist.ReduceOp.MAX)
        return bool(flag)


class CachedScorer:
    """Scores the next token of many hypotheses, looking back at what was computed for the tokens before it."""

    def __init__(self, head: Seq2SeqHead, cache: DecoderCache) -> None:
        self._head = head
        self._cache = cache
        self._position = 0

    def next_scores(self, tokens: Tensor) -> Tensor:
        """[rows] int64 -> fp32 log-probabilities [rows, vocab]."""
        layout = PaddedLayout.of_single_tokens(len(tokens), device=tokens.device)
        positions = torch.full_like(tokens, self._position)
        self._position += 1
        states = self._head.decoder(tokens, positions, layout=layout, cache=self._cache)
        scores: Tensor = self._head.predictions(states).float().log_softmax(dim=-1)
        return scores

    def select(self, *, sources: Tensor | None, rows: Tensor) -> None:
        """Keep some rows, in the order of their numbers, and the sources that they belong to; None keeps all."""
        self._cache.select(sources=sources, targets=rows)
