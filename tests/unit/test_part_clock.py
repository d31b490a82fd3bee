from __future__ import annotations

from itertools import accumulate

from trainer.part_clock import PartClock


class Ticking:
    """A clock that tells, one after the other, the sums of the given steps."""

    def __init__(self, *seconds: float) -> None:
        self._times = iter(accumulate(seconds))

    def __call__(self) -> float:
        return next(self._times)


def test_a_part_inside_another_holds_the_outer_ones_clock() -> None:
    clock = PartClock(clock=Ticking(100, 1, 20, 300, 4000, 50000))
    with clock.part("backward"):
        with clock.part("communication"):
            pass
        with clock.part("communication"):
            pass
    assert clock.seconds == {"backward": 1 + 300 + 50000, "communication": 20 + 4000}


def test_a_part_that_fails_is_counted_and_closed() -> None:
    clock = PartClock(clock=Ticking(0, 2, 3, 5, 7))
    with clock.part("other"):
        try:
            with clock.part("forward"):
                raise ValueError
        except ValueError:
            pass
    assert clock.seconds == {"other": 2 + 5, "forward": 3}


def test_the_device_is_waited_for_at_each_change_of_part() -> None:
    told = []
    clock = PartClock(wait=lambda: told.append("wait"), clock=Ticking(0, 1, 1, 1))
    double = clock.timed("forward", lambda number, *, times: told.append("called") or number * times)
    with clock.part("other"):
        assert double(4, times=2) == 8
    assert told == ["wait", "wait", "called", "wait", "wait"]
