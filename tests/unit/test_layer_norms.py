from dataclasses import dataclass

import pytest
import torch
import torch.distributed as dist

from trainer.layer_norms import layer_norms, layer_of


@pytest.mark.parametrize(
    ("parameter", "layer"),
    [
        ("encoder.layers.3.attention.query.weight", "layer_03"),
        ("encoder.layers.11.feed_forward_norm.bias", "layer_11"),
        ("encoder.embeddings.word.weight", "embeddings"),
        ("encoder.final_norm.weight", "final_norm"),
        ("head.decoder.bias", "head"),
    ],
)
def test_a_parameter_belongs_to_its_layer(parameter, layer):
    assert layer_of(parameter) == layer


@dataclass
class Ranks:
    """Collectives of a rank whose fellows hold what they are said to."""

    others: list

    def get_world_size(self):
        return 1 + len(self.others)

    def all_gather_object(self, into, own):
        into[:] = [own, *self.others]


def test_pieces_of_a_layer_add_up_over_parameters_kinds_and_ranks(monkeypatch):
    ranks = Ranks([{"layers/weight_norm/head": 16.0, "layers/moment_norm/layer_00": 9.0}, {}])
    monkeypatch.setattr(dist, "get_world_size", ranks.get_world_size)
    monkeypatch.setattr(dist, "all_gather_object", ranks.all_gather_object)
    held = [
        (
            "head.dense.weight",
            {"weight": torch.tensor([1.0, 2.0]), "ema": torch.tensor([9.0]), "exp_avg_sq": torch.ones(1)},
        ),
        ("head.dense.bias", {"weight": torch.tensor([2.0]), "momentum_buffer": torch.tensor([3.0])}),
        ("encoder.layers.0.attention.key.bias", {"exp_avg": torch.tensor([4.0])}),
    ]
    assert layer_norms(held) == {
        "layers/moment_norm/head": 3.0,
        "layers/moment_norm/layer_00": 5.0,
        "layers/weight_norm/head": 5.0,
    }
