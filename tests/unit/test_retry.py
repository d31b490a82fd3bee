from __future__ import annotations

import pytest

from data_pipeline.retry import RetryPolicy, SourceAway, TransientError, retry


class Clock:
    """Time that passes only in `sleep`."""

    def __init__(self) -> None:
        self.now = 0.0
        self.waits: list[float] = []

    def __call__(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        self.waits.append(seconds)
        self.now += seconds


def failing(times: int) -> tuple[list[int], object]:
    tries: list[int] = []

    def attempt() -> str:
        tries.append(len(tries))
        if len(tries) <= times:
            raise TransientError(f"failure {len(tries)}")
        return "bytes"

    return tries, attempt


POLICY = RetryPolicy(total_s=30.0, first_wait_s=1.0, longest_wait_s=4.0)


@pytest.mark.parametrize(("draw", "waits"), [(1.0, [1.0, 2.0, 4.0, 4.0]), (0.0, [0.5, 1.0, 2.0, 2.0])])
def test_waits_double_up_to_the_longest_and_are_half_drawn(draw: float, waits: list[float]) -> None:
    clock = Clock()
    tries, attempt = failing(4)
    assert retry(attempt, what="x", policy=POLICY, sleep=clock.sleep, clock=clock, draw=lambda: draw) == "bytes"
    assert (clock.waits, len(tries)) == (waits, 5)


def test_a_source_that_stays_away_is_named_with_tries_time_and_the_last_error() -> None:
    clock = Clock()
    tries, attempt = failing(1000)
    with pytest.raises(
        SourceAway, match=r"^http://x/a\.tar could not be read: 9 tries in 27 s, the last one: failure 9"
    ):
        retry(attempt, what="http://x/a.tar", policy=POLICY, sleep=clock.sleep, clock=clock, draw=lambda: 1.0)
    assert len(tries) == 9
    assert clock.now <= POLICY.total_s


def test_any_other_error_passes_at_once() -> None:
    def attempt() -> None:
        raise KeyError("a mistake")

    with pytest.raises(KeyError, match="a mistake"):
        retry(attempt, what="x", policy=POLICY, sleep=lambda _: pytest.fail("it waited"))
