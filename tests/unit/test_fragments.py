from __future__ import annotations

from collections import defaultdict
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from data_pipeline.manifest import load_manifest
from trainer.ds_config import build_ds_config
from trainer.fragments import (
    Fragment,
    create_optimizer_state,
    fragment_key,
    local_fragments,
    optimizer_scalars,
    optimizer_tensors,
)
from trainer.half_precision import half_precisions
from trainer.model.create import create_model
from trainer.recipe import load_recipe
from trainer.runtime import Runtime
from trainer.setup import make_engine, resolve
from trainer.topology import plan_batches


def linear_and_adam() -> tuple[nn.Linear, torch.optim.Optimizer]:
    torch.manual_seed(0)
    module = nn.Linear(3, 2)
    return module, torch.optim.AdamW(module.parameters(), lr=0.1)


def updated(module: nn.Module, optimizer: torch.optim.Optimizer) -> None:
    optimizer.zero_grad()
    module(torch.ones(1, 3)).sum().backward()
    optimizer.step()


def test_a_key_names_kind_parameter_and_first_element() -> None:
    assert fragment_key("exp_avg", "layers.0.bias", 12) == "exp_avg|layers.0.bias|12"


def test_without_zero_a_fragment_is_the_whole_parameter() -> None:
    module, optimizer = linear_and_adam()
    fragments = local_fragments(module, optimizer, zero_stage=0, dp_rank=0)
    assert [(part.name, part.start, part.numel, part.offset) for part in fragments] == [
        ("weight", 0, 6, 0),
        ("bias", 0, 2, 0),
    ]
    view = fragments[0].view(fragments[0].flat)
    assert view.tolist() == module.weight.reshape(-1).tolist()
    view[4] = 7.0
    assert module.weight[1, 1] == 7.0


def test_a_view_is_the_fragments_part_of_a_flat_tensor() -> None:
    fragment = Fragment(name="w", start=30, numel=2, flat=torch.arange(5.0), offset=3)
    assert fragment.view(fragment.flat).tolist() == [3.0, 4.0]
    assert fragment.view(torch.tensor([0.0, 0, 0, 8, 9])).tolist() == [8.0, 9.0]


def test_optimiser_state_is_told_apart_by_shape() -> None:
    module, optimizer = linear_and_adam()
    fragments = local_fragments(module, optimizer, zero_stage=0, dp_rank=0)
    assert optimizer_tensors(fragments[0], optimizer) == {}
    assert optimizer_scalars(fragments, optimizer) == {}
    updated(module, optimizer)
    assert sorted(optimizer_tensors(fragments[0], optimizer)) == ["exp_avg", "exp_avg_sq"]
    assert optimizer_tensors(fragments[0], optimizer)["exp_avg"].shape == (6,)
    assert optimizer_scalars(fragments, optimizer) == {"step": 1.0}


def test_scalars_that_differ_between_parameters_cannot_be_saved() -> None:
    module, optimizer = linear_and_adam()
    updated(module, optimizer)
    optimizer.state[module.bias]["step"] += 1
    with pytest.raises(RuntimeError, match=r"optimiser state 'step' differs between parameters: \[1\.0, 2\.0\]"):
        optimizer_scalars(local_fragments(module, optimizer, zero_stage=0, dp_rank=0), optimizer)


def test_state_put_together_again_goes_on_bit_for_bit() -> None:
    module, optimizer = linear_and_adam()
    for _ in range(3):
        updated(module, optimizer)
    fragments = local_fragments(module, optimizer, zero_stage=0, dp_rank=0)
    saved = {
        part.name: {key: value.clone() for key, value in optimizer_tensors(part, optimizer).items()}
        for part in fragments
    }
    scalars = optimizer_scalars(fragments, optimizer)
    weights = {name: value.clone() for name, value in module.state_dict().items()}
    updated(module, optimizer)

    other, other_optimizer = linear_and_adam()
    other.load_state_dict(weights)
    fragments = local_fragments(other, other_optimizer, zero_stage=0, dp_rank=0)
    source = SimpleNamespace(shared={"optimizer_scalars": scalars}, optimizer_keys=lambda name: list(saved[name]))
    create_optimizer_state(fragments, other_optimizer, source=source)  # type: ignore[arg-type]
    for part in fragments:
        for key, target in optimizer_tensors(part, other_optimizer).items():
            assert not target.any()
            target.copy_(saved[part.name][key])
    updated(other, other_optimizer)
    assert other.weight.equal(module.weight)
    assert other.bias.equal(module.bias)


@pytest.mark.parametrize("zero_stage", [0, 1, 2, 3])
def test_an_engines_fragments_hold_every_element_once_with_the_masters_value(
    tiny_recipe: Path, shards: Path, runtime: Runtime, zero_stage: int
) -> None:
    overrides = [f"engine.ds_config=zero{zero_stage}", "train.micro_batch_size=12"]
    config = resolve(load_recipe(str(tiny_recipe), overrides=overrides), load_manifest(shards))
    batch_plan = plan_batches(global_batch_size=12, micro_batch_size=12, dp_world_size=1, lanes=12)
    plan = build_ds_config(
        config,
        topology=runtime.topology,
        batch_plan=batch_plan,
        device_type="cpu",
        half_precisions=half_precisions("cpu"),
    )
    expected = dict(create_model(config.model, seed=config.seed).named_parameters())
    engine = make_engine(config, ds_plan=plan, runtime=runtime, source=None)
    state = engine.state()
    engine.close()
    pieces: dict[str, list[tuple[int, torch.Tensor]]] = defaultdict(list)
    for key, tensor in state.tensors.items():
        kind, name, start = key.rsplit("|", 2)
        assert kind == "weight"
        pieces[name].append((int(start), tensor))
    assert pieces.keys() == expected.keys()
    for name, parts in pieces.items():
        assert torch.cat([tensor for _, tensor in sorted(parts, key=lambda part: part[0])]).equal(
            expected[name].detach().reshape(-1)
        )
    assert state.shared["parameter_shapes"] == {name: tuple(value.shape) for name, value in expected.items()}
