"""Timing contenders fairly: one process, turn by turn, so that a machine's slow minute is everybody's."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import median

# A contender's background threads come to rest before the next one's clock starts.
_REST_S = 0.1


def _nothing() -> None: ...


@dataclass(frozen=True)
class Contender:
    """Something to time: `work` does one piece and says how many units that was, `begin` goes before it, untimed."""

    name: str
    work: Callable[[], int]
    begin: Callable[[], object] = _nothing


def race(
    contenders: Sequence[Contender],
    *,
    rounds: int,
    seconds: float,
    label: str,
    clock: Callable[[], float] = time.perf_counter,
) -> dict[str, list[float]]:
    """Units a second of each contender in each round; all take their turn in every round (A B A B ...).

    A turn is as many pieces as fit `seconds`, at least one. One more round goes before, for warming up, and is
    dropped. `label` says on stderr how far it is.
    """
    rates: dict[str, list[float]] = {contender.name: [] for contender in contenders}
    for number in range(rounds + 1):
        print(f"{label}: {f'round {number} of {rounds}' if number else 'warming up'}", file=sys.stderr, flush=True)
        for contender in contenders:
            contender.begin()
            time.sleep(_REST_S)
            rate = _turn(contender.work, seconds=seconds, clock=clock)
            if number:
                rates[contender.name].append(rate)
    return rates


def _turn(work: Callable[[], int], *, seconds: float, clock: Callable[[], float]) -> float:
    started = clock()
    units = work()
    while (elapsed := clock() - started) < seconds:
        units += work()
    return units / elapsed


def paired_ratio(ours: Sequence[float], theirs: Sequence[float]) -> float:
    """Median over the rounds of ours ÷ theirs in the same round."""
    return median(own / other for own, other in zip(ours, theirs, strict=True))
