import pytest
from hypothesis import given
from hypothesis import strategies as st

from trainer.config import ScheduleConfig
from trainer.schedule import learning_rate


def rates(total_steps, *, peak=1.0, **settings):
    config = ScheduleConfig(**settings)
    return [
        learning_rate(config, peak=peak, applied_steps=applied, total_steps=total_steps)
        for applied in range(total_steps)
    ]


def test_linear_warms_up_to_the_peak_and_falls_to_zero():
    assert rates(8, warmup_steps=4) == [0.25, 0.5, 0.75, 1.0, 0.75, 0.5, 0.25, 0.0]


def test_linear_ends_at_the_final_ratio_exactly():
    assert rates(4, peak=2.0, warmup_steps=2, final_ratio=0.1) == [1.0, 2.0, 1.1, 0.2]


def test_without_warm_up_the_first_update_is_already_below_the_peak():
    assert rates(4) == [0.75, 0.5, 0.25, 0.0]


def test_warm_up_may_fill_the_whole_run():
    assert rates(2, warmup_steps=2) == [0.5, 1.0]


def test_after_the_last_update_the_rate_stays():
    config = ScheduleConfig(warmup_steps=1, final_ratio=0.5)
    assert learning_rate(config, peak=1.0, applied_steps=99, total_steps=10) == 0.5
    assert learning_rate(ScheduleConfig(warmup_steps=10), peak=1.0, applied_steps=99, total_steps=10) == 1.0


@given(warmup=st.integers(0, 50), rest=st.integers(1, 50), ratio=st.floats(0, 1), peak=st.floats(1e-8, 10))
def test_the_rate_rises_then_falls_and_stays_within_its_bounds(warmup, rest, ratio, peak):
    found = rates(warmup + rest, peak=peak, warmup_steps=warmup, final_ratio=ratio)
    assert found[:warmup] == sorted(found[:warmup])
    assert found[warmup:] == pytest.approx(sorted(found[warmup:], reverse=True), rel=1e-12)
    assert max(found) <= peak * (1 + 1e-12)
    assert min(found[warmup:]) >= ratio * peak * (1 - 1e-12)
