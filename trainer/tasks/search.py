"""Beam search for the likeliest sequence, of which greedy search is the case of one beam."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

NO_TOKEN = -1


class Scorer(Protocol):
    """What scores next tokens. Rows are hypotheses, `beams` side by side for each source."""

    def next_scores(self, tokens: Tensor) -> Tensor:
        """Add a token, int64 [rows], to each row's hypothesis; log-probabilities [rows, vocab] of the one after it."""
        ...

    def select(self, *, sources: Tensor | None, rows: Tensor) -> None:
        """Keep some rows, in the order of their numbers, and the sources that they belong to; None keeps all."""
        ...


class Found(NamedTuple):
    """The best sequence of each source.

    tokens: int64 [sources, max_tokens], without the end mark, NO_TOKEN behind its end.
    score: [sources], its log-probability over the length penalty.
    """

    tokens: Tensor
    score: Tensor


def penalty(length: int, *, alpha: float) -> float:
    """What a log-probability of so many tokens is divided by (Wu et al. 2016, equation 14)."""
    return float(((5 + length) / 6) ** alpha)


def beam_search(
    scorer: Scorer,
    *,
    sources: int,
    start: int,
    end: int,
    max_tokens: int,
    beams: int,
    length_penalty: float,
    device: torch.device,
    anywhere: Callable[[bool], bool] = bool,
) -> Found:
    """The best of the sequences that end with `end` or have `max_tokens` tokens, by log-probability over `penalty`.

    A hypothesis that ends among the best `beams` is finished. A source's search is over when so many have finished or
    when none that is left could still win. `anywhere` says whether any process of a collective search goes on.
    """
    open_sources = torch.arange(sources, device=device)
    best = Found(
        torch.full((sources, max_tokens), NO_TOKEN, device=device),
        torch.full((sources,), float("-inf"), device=device),
    )
    # One hypothesis to begin with; the others are impossible until it has been extended.
    scores = torch.full((sources, beams), float("-inf"), device=device)
    scores[:, 0] = 0.0
    tokens = torch.full((sources, beams, 1), start, device=device)
    finished = torch.zeros(sources, dtype=torch.int64, device=device)
    for length in range(1, max_tokens + 1):
        extended = scores[..., None] + scorer.next_scores(tokens[..., -1].flatten()).view(*scores.shape, -1)
        scores, place = extended.flatten(1).topk(beams)
        origin, token = place // extended.shape[2], place % extended.shape[2]
        tokens = torch.cat([tokens.gather(1, origin[..., None].expand_as(tokens)), token[..., None]], dim=2)
        ended = (token == end) if length < max_tokens else torch.ones_like(token, dtype=torch.bool)
        complete = ended & scores.isfinite()
        _keep_best(best, open_sources, tokens, scores.masked_fill(~complete, float("-inf")), length_penalty, end=end)
        finished += complete.sum(dim=1)
        scores = scores.masked_fill(ended, float("-inf"))
        reachable = scores.amax(dim=1) / penalty(max_tokens, alpha=length_penalty)
        over = (finished >= beams) | (reachable <= best.score[open_sources])
        going_on = (~over).nonzero().squeeze(1)
        if not anywhere(len(going_on) > 0):
            break
        rows = torch.arange(len(over), device=device)[:, None] * beams + origin
        if len(going_on) < len(over):
            scores = scores.masked_fill(over[:, None], float("-inf"))
            # A collective search that is over here goes on with a source for which nothing more can be found.
            kept = going_on if len(going_on) else torch.zeros(1, dtype=torch.int64, device=device)
            scorer.select(sources=kept, rows=rows[kept].flatten())
            scores, tokens, finished, open_sources = (
                values[kept] for values in (scores, tokens, finished, open_sources)
            )
        elif beams > 1:
            scorer.select(sources=None, rows=rows.flatten())
    return best


def _keep_best(best: Found, sources: Tensor, tokens: Tensor, scores: Tensor, alpha: float, *, end: int) -> None:
    """Take over each source's best complete hypothesis where it is better than the one before."""
    length = tokens.shape[2] - 1
    top, beam = (scores / penalty(length, alpha=alpha)).max(dim=1)
    better = (top > best.score[sources]).nonzero().squeeze(1)
    written = tokens[better, beam[better], 1:]
    last = written[:, -1]
    best.score[sources[better]] = top[better]
    best.tokens[sources[better]] = NO_TOKEN
    best.tokens[sources[better], :length] = torch.cat(
        [written[:, :-1], last.masked_fill(last == end, NO_TOKEN)[:, None]], dim=1
    )
