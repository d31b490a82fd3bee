from types import SimpleNamespace

import pytest

from trainer.config import CheckpointConfig, Config, DataConfig, ModelConfig, TrainConfig
from trainer.errors import UserError
from trainer.optimizer_config import AdamWConfig, SGDConfig
from trainer.resume import changes, check_fits, describe_changes


def config(*, rate=1e-3, steps=10, layers=1, dropout=0.1, weights_only=False):
    return Config(
        name="a",
        data=DataConfig(shards="x"),
        model=ModelConfig(num_layers=layers, hidden_dropout=dropout),
        optimizer=AdamWConfig(learning_rate=rate),
        checkpoint=CheckpointConfig(weights_only=weights_only),
        train=TrainConfig(steps=steps, global_batch_size=8, micro_batch_size=8),
    )


def checkpoint(saved, *, step=4, world_size=2):
    state = {"config": saved.model_dump(), "step": step, "world_size": world_size}
    return SimpleNamespace(folder="checkpoints/step-00000004", state=state)


def test_changes_name_the_key_and_both_values():
    assert changes({"a": {"b": 1, "c": 2}}, {"a": {"b": 1, "c": 3}, "d": 4}) == ["a.c 2 → 3", "d None → 4"]


def test_what_takes_effect_is_told_in_one_line_and_an_equal_recipe_is_silent():
    saved = checkpoint(config())
    assert describe_changes(config(), saved, world_size=2) is None
    told = describe_changes(config(rate=5e-3, steps=20), saved, world_size=1)
    assert told == ("changed since step 4: optimizer.learning_rate 0.001 → 0.005; train.steps 10 → 20; processes 2 → 1")


def test_another_model_and_a_run_past_its_end_are_refused_but_dropout_may_change():
    check_fits(config(dropout=0.0), checkpoint(config()))
    with pytest.raises(UserError, match=r"another model \(model.num_layers 1 → 2\)"):
        check_fits(config(layers=2), checkpoint(config()))
    with pytest.raises(UserError, match=r"is past train\.steps=3"):
        check_fits(config(steps=3), checkpoint(config()))


def test_a_setting_that_the_saving_version_did_not_know_counts_as_its_default():
    saved = checkpoint(config())
    del saved.state["config"]["model"]["family"], saved.state["config"]["model"]["norm"]
    check_fits(config(), saved)
    assert describe_changes(config(), saved, world_size=2) is None
    with pytest.raises(UserError, match=r"another model \(model.norm post → pre\)"):
        check_fits(
            config().model_copy(update={"model": ModelConfig(num_layers=1, hidden_dropout=0.1, norm="pre")}), saved
        )


def test_another_optimizer_is_refused():
    other = config().model_copy(update={"optimizer": SGDConfig()})
    with pytest.raises(UserError, match=r"holds the state of optimizer\.name=adamw, the recipe names sgd; restore the"):
        check_fits(other, checkpoint(config()))


def test_no_run_goes_on_from_weights_only_whatever_the_recipe_says_now():
    with pytest.raises(UserError, match=r"holds weights only .*, so no run can go on from it; evaluate or export it"):
        check_fits(config(), checkpoint(config(weights_only=True)))
    check_fits(config(weights_only=True), checkpoint(config()))
