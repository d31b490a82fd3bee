from __future__ import annotations

from typing import Any

import pytest

from trainer.communication_volume import StepBytes
from trainer.device_figures import DeviceFigures
from trainer.time_model import Hardware, StepTime, predict_step

DEVICE = DeviceFigures(
    name="made-up",
    peak_flops={"fp32": 1000.0},
    memory_bytes=1 << 30,
    memory_rate=400.0,
    link_rate=100.0,
    devices_a_machine=4,
)
SENT = StepBytes(gradients=600.0, weights=300.0, tied=0.0, border=0.0)


def predict(count: int = 2, **changes: Any) -> StepTime:
    usual = {
        "precision": "fp32",
        "flops": 1500.0,
        "busiest_share": 1.0,
        "micro_batches": 2,
        "num_stages": 1,
        "zero_stage": 1,
        "sent": SENT,
        "overlaps": False,
        "stage_parameters": 100,
    }
    hardware = Hardware(DEVICE, count, network_rate=20.0, efficiency=0.5)
    return predict_step(hardware, **{**usual, **changes})


def test_without_overlap_a_step_is_the_sum_of_its_terms() -> None:
    found = predict()
    # 1500 FLOPs at 500 a second, twice; 900 bytes at 100; half of 100 weights at 40 bytes each, 400 a second.
    assert found == StepTime(compute_s=6.0, bubble_s=0.0, communication_s=9.0, update_s=5.0)
    assert found.step_s == 20.0


def test_replicas_on_several_machines_send_over_the_network() -> None:
    assert predict(count=4).communication_s == 9.0
    assert predict(count=8).communication_s == 45.0


@pytest.mark.parametrize(
    ("zero_stage", "seconds"),
    [
        (2, 6 - 4 + 3),  # the backward pass, two thirds of 6 s, hides as much of the gradients; weights are waited for
        (3, 9 - 6),  # all of the compute time hides gradients and weights
    ],
)
def test_overlap_hides_what_compute_covers(zero_stage: int, seconds: float) -> None:
    found = predict(overlaps=True, zero_stage=zero_stage, sent=SENT)
    assert found.communication_s == pytest.approx(seconds)


def test_what_is_hidden_costs_no_less_than_nothing() -> None:
    assert predict(overlaps=True, zero_stage=3, sent=StepBytes(10.0, 10.0, 0.0, 0.0)).communication_s == 0.0


def test_without_zero_every_rank_updates_all_weights() -> None:
    assert predict(zero_stage=0).update_s == 10.0


def test_the_dearest_stage_sets_the_pace_and_the_bubble() -> None:
    found = predict(count=2, num_stages=2, busiest_share=0.6, sent=StepBytes(0.0, 0.0, 50.0, 200.0))
    a_micro_batch = 1500 * 0.6 / 500
    assert found.compute_s == pytest.approx(2 * a_micro_batch)
    assert found.bubble_s == pytest.approx(a_micro_batch)
    # The tied matrix, and the one border, of whose bytes an average rank of two sends half.
    assert found.communication_s == pytest.approx((50 + 400) / 100)
    four = predict(count=4, num_stages=4, busiest_share=0.3, sent=StepBytes(0.0, 0.0, 0.0, 300.0))
    assert four.bubble_s == pytest.approx(3 * 1500 * 0.3 / 500)
    assert four.communication_s == pytest.approx(2 * 400 / 100)
