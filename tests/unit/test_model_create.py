"""New weights are a function of (config, seed); decay spares biases and norms."""

from __future__ import annotations

from itertools import combinations

import pytest
import torch

from trainer.config import ModelConfig
from trainer.model.create import create_model, parameter_groups

CONFIG = ModelConfig(
    hidden_size=32, num_layers=2, num_heads=2, intermediate_size=64, max_positions=40, vocab_size=300, norm="post"
)


def test_equal_seeds_give_equal_weights_and_other_seeds_others() -> None:
    first, again, other = (create_model(CONFIG, seed=seed).state_dict() for seed in (1, 1, 2))
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert not torch.equal(first["head.dense.weight"], other["head.dense.weight"])


def test_the_global_generator_neither_matters_nor_moves() -> None:
    torch.manual_seed(0)
    first = create_model(CONFIG, seed=1).state_dict()
    torch.manual_seed(99)
    state = torch.get_rng_state()
    second = create_model(CONFIG, seed=1).state_dict()
    assert torch.equal(state, torch.get_rng_state())
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_a_weight_depends_on_its_name_not_on_the_weights_before_it() -> None:
    deep = create_model(CONFIG.model_copy(update={"num_layers": 4}), seed=1).state_dict()
    shallow = create_model(CONFIG, seed=1).state_dict()
    assert all(torch.equal(deep[name], weight) for name, weight in shallow.items())


def test_weights_of_one_shape_are_drawn_apart() -> None:
    first, second = (layer.attention for layer in create_model(CONFIG, seed=1).encoder.layers)
    drawn = [first.query.weight, first.key.weight, first.value.weight, second.query.weight]
    assert not any(torch.equal(one, other) for one, other in combinations(drawn, 2))


@pytest.mark.parametrize("norm", ["post", "pre"])
def test_matrices_are_normal_biases_zero_norms_one(norm: str) -> None:
    model = create_model(CONFIG.model_copy(update={"norm": norm, "initializer_range": 0.05}), seed=0)
    for name, parameter in model.named_parameters():
        if parameter.ndim > 1 and parameter.numel() > 1000:
            assert parameter.std().item() == pytest.approx(0.05, rel=0.1), name
            assert abs(parameter.mean().item()) < 0.005, name
        elif name.endswith("bias"):
            assert parameter.abs().max() == 0, name
        elif parameter.ndim == 1:
            assert (parameter == 1).all(), name


@pytest.mark.parametrize("norm", ["post", "pre"])
def test_parameter_groups_hold_every_weight_once_and_decay_no_bias_and_no_norm(norm: str) -> None:
    model = create_model(CONFIG.model_copy(update={"norm": norm}), seed=0)
    decay, no_decay = parameter_groups(model, weight_decay=0.3)
    assert (decay["name"], decay["weight_decay"]) == ("decay", 0.3)
    assert (no_decay["name"], no_decay["weight_decay"]) == ("no_decay", 0.0)
    assert all(parameter.ndim == 2 for parameter in decay["params"])
    assert all(parameter.ndim == 1 for parameter in no_decay["params"])
    grouped = [id(parameter) for group in (decay, no_decay) for parameter in group["params"]]
    assert sorted(grouped) == sorted(id(parameter) for parameter in model.parameters())


def test_muon_takes_the_matrices_of_the_layers_and_nothing_else() -> None:
    model = create_model(CONFIG, seed=0)
    muon, decay, no_decay = parameter_groups(model, weight_decay=0.3, muon=True)
    assert (muon["name"], muon["muon"], muon["weight_decay"]) == ("muon", True, 0.3)
    of_layers = [weight for name, weight in model.named_parameters() if ".layers." in name and weight.ndim == 2]
    assert [id(weight) for weight in muon["params"]] == [id(weight) for weight in of_layers]
    assert any(weight is model.encoder.embeddings.word.weight for weight in decay["params"])
    grouped = sum(len(group["params"]) for group in (muon, decay, no_decay))
    assert grouped == len(list(model.parameters()))


def test_frozen_weights_are_in_no_group() -> None:
    model = create_model(CONFIG, seed=0)
    model.encoder.embeddings.requires_grad_(False)
    grouped = sum(len(group["params"]) for group in parameter_groups(model, weight_decay=0.1))
    assert grouped == sum(1 for parameter in model.parameters() if parameter.requires_grad)
