from __future__ import annotations

import json
import math

from trainer.state import RunState


def test_a_saved_state_goes_on_with_equal_counters() -> None:
    state = RunState(step=7, applied_steps=6, tokens=12345, best_score=2.5, best_step=4)
    other = RunState()
    other.load_state_dict(json.loads(json.dumps(state.state_dict())))
    assert other == state


def test_other_entries_of_a_checkpoint_are_left_alone() -> None:
    state = RunState()
    state.load_state_dict({**RunState(step=3).state_dict(), "cursor": {}})
    assert state == RunState(step=3)


def test_the_least_validation_loss_is_the_best() -> None:
    state = RunState()
    offers = []
    for step, loss in ((1, 3.0), (2, 3.0), (3, 2.0), (4, 2.5)):
        state.step = step
        offers.append(state.offer_best(loss))
    assert offers == [True, False, True, False]
    assert (state.best_score, state.best_step) == (2.0, 3)


def test_a_loss_that_is_no_number_is_never_the_best() -> None:
    state = RunState(step=1)
    assert not state.offer_best(math.nan)
    assert not state.offer_best(math.inf)
    assert state == RunState(step=1)
    assert state.offer_best(9.0)
    assert not state.offer_best(math.nan)
    assert state.best_score == 9.0
