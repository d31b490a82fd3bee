from __future__ import annotations

import pytest

from trainer.config import Config
from trainer.errors import UserError
from trainer.recipe import load_recipe
from trainer.show_config import deepspeed_plan_for


def config(**train: int) -> Config:
    return Config.model_validate(
        {
            "name": "shown",
            "data": {"shards": "shards", "lanes": 12},
            "train": {"steps": 5, "global_batch_size": 24, "micro_batch_size": 2, **train},
            "engine": {"ds_config": "zero2", "precision": "fp32"},
        }
    )


@pytest.mark.parametrize(("world_size", "accumulation"), [(1, 12), (2, 6), (4, 3)])
def test_the_batch_is_dealt_over_so_many_processes(world_size: int, accumulation: int) -> None:
    plan = deepspeed_plan_for(config(), world_size=world_size)
    assert plan.config["train_batch_size"] == 24
    assert plan.config["train_micro_batch_size_per_gpu"] == 2
    assert plan.config["gradient_accumulation_steps"] == accumulation
    assert (plan.config["zero_optimization"]["stage"], plan.precision) == (2, "fp32")


def test_a_layout_that_cannot_be_is_refused() -> None:
    with pytest.raises(UserError, match=r"dp_world_size=5 does not divide data.lanes=12; use dp_world_size=4 or 6"):
        deepspeed_plan_for(config(), world_size=5)
    with pytest.raises(UserError, match="global_batch_size=25 is not divisible by"):
        deepspeed_plan_for(config(global_batch_size=25), world_size=1)
    with pytest.raises(UserError, match="WORLD_SIZE=0"):
        deepspeed_plan_for(config(), world_size=0)


@pytest.mark.parametrize("recipe", ["demo", "parity", "bert_mini", "bert_base"])
def test_every_recipe_has_a_plan(recipe: str) -> None:
    config = load_recipe(recipe)
    assert deepspeed_plan_for(config, world_size=1).config["train_batch_size"] == config.train.global_batch_size
