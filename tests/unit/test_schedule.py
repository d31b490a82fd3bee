import math

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import TypeAdapter

from trainer.schedule import learning_rate
from trainer.schedule_config import ScheduleConfig, check_length

SCHEDULE = TypeAdapter(ScheduleConfig)
NAMES = ("linear", "cosine", "constant", "polynomial", "one_cycle", "wsd")


def rates(total_steps, *, peak=1.0, **settings):
    config = SCHEDULE.validate_python(settings)
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


def test_cosine_falls_as_half_a_wave():
    found = rates(6, name="cosine", warmup_steps=2, final_ratio=0.2)
    root = math.sqrt(0.5)
    expected = [0.5, 1.0, 0.6 + 0.4 * root, 0.6, 0.6 - 0.4 * root, 0.2]
    assert found == pytest.approx(expected, rel=1e-12)


def test_constant_stays_at_the_peak():
    assert rates(5, name="constant", warmup_steps=2, peak=3.0) == [1.5, 3.0, 3.0, 3.0, 3.0]


def test_polynomial_falls_by_its_power():
    assert rates(5, name="polynomial", warmup_steps=1, power=2.0) == [1.0, 0.5625, 0.25, 0.0625, 0.0]
    assert rates(5, name="polynomial", warmup_steps=1, power=1.0) == rates(5, warmup_steps=1)


def test_one_cycle_goes_up_down_by_as_many_steps_and_then_to_its_end():
    settings = {"name": "one_cycle", "warmup_steps": 2, "initial_ratio": 0.5, "final_ratio": 0.25}
    assert rates(6, **settings) == [0.75, 1.0, 0.75, 0.5, 0.375, 0.25]
    # A run that is the cycle alone ends where it began.
    assert rates(4, **settings) == [0.75, 1.0, 0.75, 0.5]


def test_wsd_is_stable_and_then_falls_by_one_minus_the_root():
    found = rates(8, name="wsd", warmup_steps=2, decay_steps=4, peak=2.0)
    assert found == [1.0, 2.0, 2.0, 2.0, 1.0, 2 * (1 - math.sqrt(0.5)), 2 * (1 - math.sqrt(0.75)), 0.0]
    assert rates(3, name="wsd", decay_steps=1, final_ratio=0.5) == [1.0, 1.0, 0.5]


@pytest.mark.parametrize("name", NAMES)
def test_every_knob_of_a_schedule_changes_it(name):
    needed = {"one_cycle": {"warmup_steps": 3}, "wsd": {"decay_steps": 3}}.get(name, {})
    base = rates(10, name=name, **needed)
    changed = {"warmup_steps": 2, "final_ratio": 0.3, "power": 3.0, "initial_ratio": 0.4, "decay_steps": 5}
    kind = type(SCHEDULE.validate_python({"name": name, **needed}))
    for knob in kind.model_fields.keys() - {"name"}:
        assert rates(10, name=name, **{**needed, knob: changed[knob]}) != base, knob


def test_warm_up_may_fill_the_whole_run():
    assert rates(2, warmup_steps=2) == [0.5, 1.0]


@pytest.mark.parametrize("name", NAMES)
def test_after_the_last_update_the_rate_stays(name):
    needed = {"one_cycle": {"warmup_steps": 3}, "wsd": {"decay_steps": 3}}.get(name, {})
    config = SCHEDULE.validate_python({"name": name, **needed})
    last, later = (learning_rate(config, peak=1.0, applied_steps=applied, total_steps=10) for applied in (9, 99))
    assert last == later == rates(10, name=name, **needed)[-1]


@pytest.mark.parametrize(
    ("settings", "steps", "message"),
    [
        ({"warmup_steps": 11}, 10, "schedule.warmup_steps=11 is longer than train.steps=10"),
        (
            {"name": "wsd", "warmup_steps": 6, "decay_steps": 5},
            10,
            r"schedule.warmup_steps=6 \+ schedule.decay_steps=5 \(= 11\) is longer than train.steps=10",
        ),
        ({"name": "wsd", "decay_steps": 11}, 10, r"schedule.decay_steps=11 \(= 11\) is longer than train.steps=10"),
        ({"name": "one_cycle", "warmup_steps": 6}, 11, r"\(= 12\) is longer than train.steps=11"),
    ],
)
def test_a_schedule_longer_than_the_run_is_refused_and_one_that_fits_is_not(settings, steps, message):
    config = SCHEDULE.validate_python(settings)
    with pytest.raises(ValueError, match=message):
        check_length(config, total_steps=steps)
    check_length(config, total_steps=steps + 1)


@given(
    name=st.sampled_from(NAMES),
    warmup=st.integers(1, 50),
    rest=st.integers(51, 99),
    ratio=st.floats(0, 1, allow_subnormal=False),
    peak=st.floats(1e-8, 10),
)
def test_the_rate_rises_then_falls_and_stays_within_its_bounds(name, warmup, rest, ratio, peak):
    settings = {"wsd": {"decay_steps": 20}, "one_cycle": {"initial_ratio": ratio}}.get(name, {})
    settings |= {} if name == "constant" else {"final_ratio": ratio}
    found = rates(warmup + rest, peak=peak, name=name, warmup_steps=warmup, **settings)
    assert found[:warmup] == pytest.approx(sorted(found[:warmup]), rel=1e-12)
    assert found[warmup:] == pytest.approx(sorted(found[warmup:], reverse=True), rel=1e-12)
    assert max(found) <= peak * (1 + 1e-12)
    assert min(found[warmup:]) >= ratio * peak * (1 - 1e-12)
