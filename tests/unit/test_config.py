import pytest
from pydantic import ValidationError

from trainer.config import (
    Config,
    DataConfig,
    ModelConfig,
    ObjectiveConfig,
    data_config_hash,
    fingerprint,
)
from trainer.optimizer_config import AdamWConfig

SOURCE = {"name": "a", "weight": 0.5, "shards": "x"}


def config(**changes):
    values = {
        "name": "tiny",
        "data": {"shards": "somewhere"},
        "train": {"steps": 10, "global_batch_size": 8, "micro_batch_size": 4},
    }
    return Config.model_validate({**values, **changes})


@pytest.mark.parametrize(
    ("model", "values", "message"),
    [
        (DataConfig, {}, "set exactly one of data.shards"),
        (DataConfig, {"shards": "a", "text": ["b"]}, "set exactly one of data.shards"),
        (DataConfig, {"shards": "a", "prepared": "b"}, "data.prepared belongs to data.text"),
        (
            DataConfig,
            {"shards": "a", "word_starts": "jieba"},
            "data.word_starts and data.deduplicate belong",
        ),
        (DataConfig, {"shards": "a", "deduplicate": True}, "data.word_starts and data.deduplicate belong"),
        (DataConfig, {"shards": "a", "max_seq_len": 3}, "at least 4"),
        (DataConfig, {"shards": "a", "sources": [SOURCE]}, "set exactly one of data.shards"),
        (DataConfig, {"sources": [SOURCE], "prepared": "b"}, "data.prepared belongs to data.text"),
        (DataConfig, {"sources": [SOURCE, SOURCE]}, "data.sources names 'a' twice"),
        (DataConfig, {"sources": [{**SOURCE, "text": ["b"]}]}, "set exactly one of shards and text for the source 'a'"),
        (DataConfig, {"sources": [{**SOURCE, "weight": 0.0}]}, "greater than 0"),
        (DataConfig, {"sources": [{**SOURCE, "name": "a b"}]}, "should match pattern"),
        (DataConfig, {"shards": "a", "on_exhausted": "end"}, "'repeat' or 'stop'"),
        (ObjectiveConfig, {"mask_token_rate": 0.8, "random_token_rate": 0.3}, "exceeds 1"),
        (ObjectiveConfig, {"mask_rate": 0.0}, "greater than 0"),
        (ModelConfig, {"hidden_size": 100, "num_heads": 12}, "use hidden_size=108"),
        (ModelConfig, {"hidden_dropout": 1.0}, "less than 1"),
        (AdamWConfig, {"learning_rate": float("inf")}, "finite number"),
        (AdamWConfig, {"learning_rate": float("nan")}, "finite number"),
        (AdamWConfig, {"learning_rate": "1e-4"}, "valid number"),
        (AdamWConfig, {"lr": 1e-4}, "Extra inputs are not permitted"),
    ],
)
def test_a_section_refuses_what_breaks_its_rule(model, values, message):
    with pytest.raises(ValidationError, match=message):
        model.model_validate(values)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"tokenizer": {}}, "the tokenizer section belongs to data.text"),
        ({"model": {"max_positions": 256}}, "data.max_seq_len=512 is longer than model.max_positions=256"),
        ({"schedule": {"warmup_steps": 11}}, "schedule.warmup_steps=11 is longer than train.steps=10"),
        (
            {"stability": {"on_spike": "rollback"}, "checkpoint": {"weights_only": True}},
            "stability.on_spike=rollback needs the optimiser's state, which checkpoint.weights_only=true leaves out",
        ),
        ({"stability": {}}, "Field required"),
        ({"stability": {"on_spike": "skip", "window": 1}}, "greater than or equal to 2"),
        ({"stability": {"on_spike": "skip", "threshold": 0.0}}, "greater than 0"),
        ({"optimizer": {"ema_decay": 1.0}}, "less than 1"),
        ({"objective": {"label_smoothing": 1.0}}, "less than 1"),
        ({"objective": {"z_loss": -1.0}}, "greater than or equal to 0"),
        ({"model": {"embedding_dropout": 1.0}}, "less than 1"),
        ({"name": "../up"}, "String should match pattern"),
    ],
)
def test_sections_that_disagree_are_refused(changes, message):
    with pytest.raises(ValidationError, match=message):
        config(**changes)


def test_a_config_cannot_be_changed():
    made = config()
    with pytest.raises(ValidationError, match="frozen"):
        made.seed = 1


def test_fingerprints_do_not_depend_on_the_order_of_keys():
    assert fingerprint({"a": 1, "b": [1.5, None]}) == fingerprint({"b": [1.5, None], "a": 1})
    assert fingerprint({"a": 1}) != fingerprint({"a": 2})


def test_the_data_hash_follows_what_decides_a_row_and_nothing_else():
    data = {"shards": "somewhere"}
    base = data_config_hash(config())
    for same in (
        {"seed": 5},
        {"data": {"shards": "elsewhere"}},
        {"data": {**data, "prefetch_batches": 9}},
        {"objective": {"label_smoothing": 0.1, "z_loss": 1e-4}},
    ):
        assert data_config_hash(config(**same)) == base
    for other in (
        {"data": {**data, "max_seq_len": 256}},
        {"data": {**data, "packing": "padded"}},
        {"data": {**data, "lanes": 480}},
        {"objective": {"mask_rate": 0.3}},
    ):
        assert data_config_hash(config(**other)) != base


def test_one_path_of_text_may_be_written_without_a_list():
    assert DataConfig(text="corpus/*.jsonl").text == ["corpus/*.jsonl"]
