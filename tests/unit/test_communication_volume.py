from __future__ import annotations

import pytest

from trainer.communication_volume import step_bytes
from trainer.config import Config
from trainer.memory_plan import StageShare, Weights


def config(**sections: dict[str, object]) -> Config:
    return Config.model_validate(
        {
            "name": "sent",
            "data": {"shards": "shards", "max_seq_len": 16},
            "model": {"hidden_size": 8, "num_layers": 2, "num_heads": 1, "vocab_size": 50},
            "train": {"steps": 5, "global_batch_size": 24, "micro_batch_size": 2},
            **sections,
        }
    )


def share(parameters: int) -> StageShare:
    return StageShare(weights=Weights(parameters, in_matrices=0), layers=1, has_head=True, in_flight=1)


@pytest.mark.parametrize(("zero_stage", "elements"), [(0, 2), (1, 2), (2, 2), (3, 3)])
def test_one_micro_batch_sends_what_the_zero_paper_says(zero_stage: int, elements: int) -> None:
    sent = step_bytes(
        config(), stages=[share(1000)], zero_stage=zero_stage, dp_world_size=4, micro_batches=1, precision="fp32"
    )
    assert sent.total == elements * 1000 * 4 * 3 / 4
    assert (sent.tied, sent.border) == (0, 0)


@pytest.mark.parametrize(
    ("zero_stage", "gradients", "weights"), [(0, 2 * 4, 0), (1, 4, 2), (2, 3 * 4, 2), (3, 3 * 4, 3 * 2 * 2)]
)
def test_more_micro_batches_send_what_is_not_kept_again(zero_stage: int, gradients: int, weights: int) -> None:
    sent = step_bytes(
        config(), stages=[share(1000)], zero_stage=zero_stage, dp_world_size=2, micro_batches=3, precision="bf16"
    )
    assert (sent.gradients, sent.weights) == (gradients * 500, weights * 500)


@pytest.mark.parametrize(("zero_stage", "times"), [(0, 1), (1, 2), (2, 2), (3, 1)])
def test_stages_1_and_2_may_all_reduce_and_send_twice(zero_stage: int, times: int) -> None:
    layout = {"stages": [share(1000)], "zero_stage": zero_stage, "dp_world_size": 2, "micro_batches": 3}
    once, twice = (step_bytes(config(), **layout, precision="fp32", all_reduces=choice) for choice in (False, True))
    assert (twice.gradients, twice.weights) == (times * once.gradients, once.weights)


def test_gradients_may_be_sent_in_half_precision() -> None:
    sent = step_bytes(
        config(),
        stages=[share(1000)],
        zero_stage=1,
        dp_world_size=2,
        micro_batches=1,
        precision="bf16",
        communication_type="bf16",
    )
    assert (sent.gradients, sent.weights) == (1000, 1000)


@pytest.mark.parametrize(("pairs", "labels"), [("none", 1), ("sop", 2)])
def test_stages_send_hidden_states_ids_and_labels_over_their_borders(pairs: str, labels: int) -> None:
    sent = step_bytes(
        config(objective={"pairs": pairs}),
        stages=[share(1000), share(600)],
        zero_stage=1,
        dp_world_size=2,
        micro_batches=3,
        precision="bf16",
    )
    # One of two ranks' borders, each crossed 3 times by 2 x 16 positions.
    assert sent.border == 3 * 32 * (2 * 8 * 2 + 4 + 8 * labels) / 2
    # The matrix of 50 x 8 is held four times, in two stages of two replicas.
    assert sent.tied == 2 * 3 / 4 * 50 * 8 * 4
    assert (sent.gradients, sent.weights) == (800 / 2 * 4, 800 / 2 * 2)
