import pytest

from trainer.config import ModelConfig
from trainer.memory_plan import StageShare, Weights, checkpoint_bytes, optimizer_state_bytes, plan_stages, plan_states
from trainer.optimizer_config import AdamConfig, AdamWConfig, LambConfig, MuonConfig, SGDConfig, StableAdamWConfig

WEIGHTS = Weights(parameters=1000, in_matrices=600)


@pytest.mark.parametrize(
    ("optimizer", "expected"),
    [
        (AdamWConfig(), 8000),
        (AdamConfig(), 8000),
        (LambConfig(), 8000),
        (StableAdamWConfig(), 8000),
        (SGDConfig(), 4000),
        (SGDConfig(momentum=0.0), 0),
        (MuonConfig(), 600 * 4 + 400 * 8),
    ],
    ids=lambda value: getattr(value, "name", value),
)
def test_an_optimiser_keeps_so_many_bytes(optimizer, expected):
    assert optimizer_state_bytes(optimizer, weights=WEIGHTS) == expected
    assert checkpoint_bytes(optimizer, weights=WEIGHTS, weights_only=False) == 4000 + expected
    assert checkpoint_bytes(optimizer, weights=WEIGHTS, weights_only=True) == 4000


def test_averaged_weights_are_in_every_checkpoint():
    assert checkpoint_bytes(AdamWConfig(ema_decay=0.9), weights=WEIGHTS, weights_only=False) == 16000
    assert checkpoint_bytes(AdamWConfig(ema_decay=0.9), weights=WEIGHTS, weights_only=True) == 8000


# By (half precision, ZeRO stage), on four ranks: weights, gradients, optimiser, averaged weights, communication.
@pytest.mark.parametrize(
    ("half", "stage", "expected"),
    [
        (False, 0, (4000, 4000, 8000, 4000, 400)),
        (False, 1, (4000, 4000, 3000, 1000, 600)),
        (False, 2, (4000, 4000, 3000, 1000, 600)),
        (False, 3, (1000, 5000, 3000, 1000, 1000)),
        (True, 1, (2000, 6000, 3000, 1000, 640)),
        (True, 2, (2000, 3000, 3000, 1000, 840)),
        (True, 3, (500, 3000, 3000, 1000, 1200)),
    ],
)
def test_zero_cuts_up_what_its_stage_says(half, stage, expected):
    states = plan_states(
        WEIGHTS, optimizer=AdamWConfig(ema_decay=0.9), half=half, zero_stage=stage, dp_world_size=4, bucket=100
    )
    names = ("weights_bytes", "gradients_bytes", "optimizer_bytes", "average_bytes", "communication_bytes")
    assert states == dict(zip(names, expected, strict=True))


MODEL = ModelConfig(
    hidden_size=4, num_layers=2, num_heads=2, intermediate_size=8, max_positions=6, type_vocab_size=2, vocab_size=10
)
MATRICES = 4 * 4 * 4 + 2 * 4 * 8
LAYER = MATRICES + 4 * 4 + 8 + 4 + 2 * 8
EMBEDDINGS = (10 + 6 + 2) * 4 + 8
HEAD = 4 * 4 + 4 + 8 + 10


def test_weights_are_counted_once_though_two_modules_share_them():
    (whole,) = plan_stages(MODEL, bounds=[0, 4], micro_batches=5)
    assert whole == StageShare(Weights(EMBEDDINGS + 2 * LAYER + HEAD, 2 * MATRICES), 2, has_head=True, in_flight=1)


def test_pair_heads_are_counted_too():
    (paired,) = plan_stages(MODEL, bounds=[0, 4], micro_batches=5, candidates=1)
    (plain,) = plan_stages(MODEL, bounds=[0, 4], micro_batches=5)
    assert paired.weights.parameters - plain.weights.parameters == (4 * 4 + 4) + (2 * 4 + 2)


def test_each_stage_holds_its_units_and_the_tied_matrix_at_both_ends():
    first, last = plan_stages(MODEL, bounds=[0, 2, 4], micro_batches=5)
    assert first == StageShare(Weights(EMBEDDINGS + LAYER, MATRICES), 1, has_head=False, in_flight=2)
    assert last == StageShare(Weights(LAYER + HEAD + 10 * 4, MATRICES), 1, has_head=True, in_flight=1)
    assert [stage.in_flight for stage in plan_stages(MODEL, bounds=[0, 1, 2, 4], micro_batches=2)] == [2, 2, 1]
