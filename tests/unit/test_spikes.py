from __future__ import annotations

import math

import pytest
import torch

from trainer.config import StabilityConfig
from trainer.errors import UserError
from trainer.model.loss_term import LossTerm
from trainer.runtime import Runtime
from trainer.spikes import SpikeDetector, SpikeGuard
from trainer.step_sums import StepSums


def detector(*losses: float, window: int = 4, threshold: float = 2.0) -> SpikeDetector:
    made = SpikeDetector(window=window, threshold=threshold)
    assert not any(made.is_spike(loss) for loss in losses)
    return made


def sums(loss: float) -> StepSums:
    """A step over four predictions."""
    return {"mlm": LossTerm(torch.tensor(4.0 * loss).double(), torch.tensor(4.0).double(), torch.tensor(0.0).double())}


def guard(*, max_spikes: int = 2) -> SpikeGuard:
    config = StabilityConfig(on_spike="rollback", window=2, threshold=3.0, max_spikes=max_spikes)
    return SpikeGuard(config, term_weights={"mlm": 1.0})


def test_a_spike_is_so_many_deviations_above_the_mean_of_the_window() -> None:
    # Mean 2, deviation 1: the limit is 4.
    assert not detector(1.0, 3.0, 1.0, 3.0).is_spike(4.0)
    assert detector(1.0, 3.0, 1.0, 3.0).is_spike(4.001)
    assert not detector(1.0, 3.0, 1.0, 3.0, threshold=3.0).is_spike(4.001)
    assert not detector(1.0, 3.0, 1.0, 3.0).is_spike(-9.0)


def test_nothing_is_a_spike_before_the_window_is_full() -> None:
    assert not detector(1.0, 1.0, 1.0).is_spike(100.0)
    assert detector(1.0, 1.0, 1.0, window=3).is_spike(100.0)


def test_a_spike_and_what_is_no_number_stay_out_of_the_window() -> None:
    made = detector(1.0, 3.0, 1.0, 3.0)
    assert made.is_spike(50.0)
    assert not made.is_spike(math.nan)
    assert not made.is_spike(math.inf)
    assert made.losses == [1.0, 3.0, 1.0, 3.0]
    assert not made.is_spike(2.0)
    assert made.losses == [3.0, 1.0, 3.0, 2.0]


def test_a_guard_names_the_first_spike_of_the_steps_it_has_not_looked_at(runtime: Runtime) -> None:
    made = guard()
    assert made.find() is None
    for step, loss in enumerate((1.0, 1.0, 1.0, 9.0, 9.0), start=1):
        made.note(sums(loss), step=step)
    assert made.find() == 4
    assert made.find() is None
    assert made.spikes == 1


def test_a_guard_refuses_the_update_of_a_spike(runtime: Runtime) -> None:
    made = guard()
    assert [made.accept(sums(loss)) for loss in (1.0, 1.0, 5.0, 1.0)] == [True, True, False, True]


def test_too_many_spikes_end_the_run(runtime: Runtime) -> None:
    made = guard(max_spikes=1)
    assert [made.accept(sums(loss)) for loss in (1.0, 1.0, 5.0)] == [True, True, False]
    with pytest.raises(UserError, match=r"spiked 2 times \(to 6 now\), more than stability.max_spikes=1; lower"):
        made.accept(sums(6.0))


def test_a_guard_goes_on_from_its_state_and_rolls_back_without_forgetting_the_count(runtime: Runtime) -> None:
    made = guard()
    assert [made.accept(sums(loss)) for loss in (1.0, 2.0, 50.0)] == [True, True, False]
    state = made.state_dict()
    assert state == {"losses": [1.0, 2.0], "spikes": 1}
    other = guard()
    other.load_state_dict(state)
    assert other.state_dict() == state
    assert other.accept(sums(2.5))
    other.roll_back({"losses": [1.0, 1.0], "spikes": 0})
    assert other.state_dict() == {"losses": [1.0, 1.0], "spikes": 1}
