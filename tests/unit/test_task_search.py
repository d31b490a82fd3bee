"""Beam search finds what trying every sequence finds; one beam takes the likeliest token each time."""

from __future__ import annotations

import itertools
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from data_pipeline.hashing import derive_key
from trainer.tasks.search import NO_TOKEN, beam_search, penalty

VOCAB, START, END = 4, 0, 1


class TableScorer:
    """Log-probabilities that depend on the source and on every token so far."""

    def __init__(self, sources: int, *, seed: int, sharpness: float = 2.0) -> None:
        self._sources = [f"{seed}/{number}" for number in range(sources)]
        self._sharpness = sharpness
        self._written: list[tuple[int, ...]] = []
        self.rows_scored: list[int] = []

    def scores(self, source: str, written: tuple[int, ...]) -> Tensor:
        generator = torch.Generator().manual_seed(derive_key(source, *written) >> 1)
        return (torch.randn(VOCAB, generator=generator) * self._sharpness).log_softmax(dim=0)

    def next_scores(self, tokens: Tensor) -> Tensor:
        self._written = self._written or [()] * len(tokens)
        self._written = [(*row, token) for row, token in zip(self._written, tokens.tolist(), strict=True)]
        self.rows_scored.append(len(tokens))
        beams = len(tokens) // len(self._sources)
        return torch.stack([self.scores(self._sources[i // beams], row) for i, row in enumerate(self._written)])

    def select(self, *, sources: Tensor | None, rows: Tensor) -> None:
        self._written = [self._written[row] for row in rows.tolist()]
        if sources is not None:
            self._sources = [self._sources[number] for number in sources.tolist()]


def search(
    scorer: TableScorer,
    *,
    sources: int,
    beams: int,
    max_tokens: int,
    alpha: float,
    anywhere: Callable[[bool], bool] = bool,
) -> list[tuple[list[int], float]]:
    found = beam_search(
        scorer,
        sources=sources,
        start=START,
        end=END,
        max_tokens=max_tokens,
        beams=beams,
        length_penalty=alpha,
        device=torch.device("cpu"),
        anywhere=anywhere,
    )
    texts = [[token for token in row if token != NO_TOKEN] for row in found.tokens.tolist()]
    return list(zip(texts, found.score.tolist(), strict=True))


def every_sequence(max_tokens: int) -> list[tuple[int, ...]]:
    """All that end with END, and all of `max_tokens` that do not."""
    others = [token for token in range(VOCAB) if token != END]
    ended = [(*start, END) for length in range(max_tokens) for start in itertools.product(others, repeat=length)]
    return [*ended, *itertools.product(others, repeat=max_tokens)]


def best_by_trying(scorer: TableScorer, source: str, *, max_tokens: int, alpha: float) -> tuple[list[int], float]:
    def score(sequence: tuple[int, ...]) -> float:
        sums = sum(float(scorer.scores(source, (START, *sequence[:i]))[token]) for i, token in enumerate(sequence))
        return sums / penalty(len(sequence), alpha=alpha)

    best = max(every_sequence(max_tokens), key=score)
    return [token for token in best if token != END], score(best)


@pytest.mark.parametrize("alpha", [0.0, 0.6, 3.0])
def test_a_beam_as_wide_as_all_sequences_finds_the_best_of_them(alpha: float) -> None:
    assert len(every_sequence(3)) == 40
    for seed in range(5):
        scorer = TableScorer(3, seed=seed)
        found = search(scorer, sources=3, beams=40, max_tokens=3, alpha=alpha)
        for number, (text, score) in enumerate(found):
            true_text, true_score = best_by_trying(scorer, f"{seed}/{number}", max_tokens=3, alpha=alpha)
            assert (text, score) == (true_text, pytest.approx(true_score, abs=1e-5))


def test_one_beam_takes_the_likeliest_token_each_time() -> None:
    scorer = TableScorer(6, seed=1)
    for number, (text, score) in enumerate(search(scorer, sources=6, beams=1, max_tokens=5, alpha=0.6)):
        greedy: list[int] = []
        total = 0.0
        while len(greedy) < 5 and END not in greedy:
            best = scorer.scores(f"1/{number}", (START, *greedy)).max(dim=0)
            greedy, total = [*greedy, int(best.indices)], total + float(best.values)
        assert text == [token for token in greedy if token != END]
        assert score == pytest.approx(total / penalty(len(greedy), alpha=0.6), abs=1e-5)


class Scripted(TableScorer):
    """Greedy search is misled: the likelier first token leads nowhere good."""

    def scores(self, source: str, written: tuple[int, ...]) -> Tensor:
        table = {(START,): [0.0, 0.0, 0.6, 0.4], (START, 2): [0.3, 0.3, 0.2, 0.2], (START, 3): [0.05, 0.9, 0.05, 0.0]}
        return torch.tensor(table.get(written, [0.25] * 4)).log()


def test_two_beams_find_what_one_misses() -> None:
    assert search(Scripted(1, seed=0), sources=1, beams=1, max_tokens=2, alpha=0.0)[0][0][:1] == [2]
    text, score = search(Scripted(1, seed=0), sources=1, beams=2, max_tokens=2, alpha=0.0)[0]
    assert (text, score) == ([3], pytest.approx(torch.tensor(0.36).log().item()))


def test_the_length_penalty_favours_longer_texts() -> None:
    lengths = [
        sum(len(text) for text, _ in search(TableScorer(9, seed=2), sources=9, beams=4, max_tokens=6, alpha=alpha))
        for alpha in (0.0, 2.0)
    ]
    assert lengths[0] < lengths[1]
    assert penalty(7, alpha=1.0) == 2.0


def test_a_source_that_is_over_is_computed_no_longer() -> None:
    scorer = TableScorer(8, seed=3, sharpness=6.0)
    search(scorer, sources=8, beams=2, max_tokens=6, alpha=0.6)
    assert scorer.rows_scored[0] == 16
    assert scorer.rows_scored == sorted(scorer.rows_scored, reverse=True)
    assert scorer.rows_scored[-1] < 16


def test_a_collective_search_goes_on_until_all_are_over_and_finds_the_same() -> None:
    alone = search(TableScorer(4, seed=4), sources=4, beams=2, max_tokens=6, alpha=0.6)
    scorer = TableScorer(4, seed=4)
    together = search(scorer, sources=4, beams=2, max_tokens=6, alpha=0.6, anywhere=lambda going_on: True)
    assert len(scorer.rows_scored) == 6
    assert together == alone
