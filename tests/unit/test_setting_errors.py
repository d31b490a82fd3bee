import pytest

from trainer.config import Config
from trainer.errors import UserError
from trainer.recipe import parse_recipe
from trainer.setting_errors import dotted, known_keys

RECIPE = """\
name: tiny
data: {shards: somewhere}
train: {steps: 10, global_batch_size: 8, micro_batch_size: 4}
"""


def refusal(text):
    with pytest.raises(UserError) as caught:
        parse_recipe(text, source="r.yaml")
    return str(caught.value)


@pytest.mark.parametrize(
    ("added", "message"),
    [
        ("model:\n  hidden_sise: 3", "r.yaml:5: model.hidden_sise is not a known key; did you mean hidden_size?"),
        ("steps: 4", "r.yaml:4: steps is not a known key; did you mean train.steps?"),
        ("modle: {}", "r.yaml:4: modle is not a known key; did you mean model?"),
        ("schedule: {zzz: 1}", "r.yaml:4: schedule.zzz is not a known key; the keys here are name, warmup_steps, "),
        ("seed: 0x10", "r.yaml:4: seed='0x10' is text and must be a whole number"),
        ("seed: 3.0", "r.yaml:4: seed=3.0 is a number and must be a whole number; write 3"),
        ("seed: 3.5", "r.yaml:4: seed=3.5 is a number and must be a whole number"),
        ("seed: true", "r.yaml:4: seed=true is true or false and must be a whole number"),
        ("seed:", "r.yaml:4: seed is empty and must be a whole number"),
        ("deterministic: on", "r.yaml:4: deterministic='on' is text and must be true or false"),
        ("runs_dir: 5", "r.yaml:4: runs_dir=5 is a whole number and must be text; quote it: '5'"),
        ("model: [1]", "r.yaml:4: model is a list and must be a section of keys"),
        ("model: {norm: pots}", "r.yaml:4: model.norm='pots' must be 'post' or 'pre'; did you mean post?"),
        ("optimizer:\n  beta1: 1.5", "r.yaml:5: optimizer.beta1=1.5 must be less than 1"),
        ("optimizer: {learning_rate: 1e999}", "r.yaml:4: optimizer.learning_rate=inf must be a finite number"),
        ("model: {num_heads: 7}", "r.yaml:4: model: hidden_size=768 is not divisible by num_heads=7; use"),
        (
            "optimizer: {name: sgd, beta1: 0.9}",
            "r.yaml:4: optimizer.beta1 would be ignored with optimizer.name=sgd, whose keys are name, learning_rate, ",
        ),
        ("optimizer: {name: sgd, momntum: 0.9}", "r.yaml:4: optimizer.momntum is not a known key; did you mean"),
        ("optimizer: {name: admw}", "r.yaml:4: optimizer.name='admw' must be one of 'adamw', 'adam', "),
        ("optimizer: 5", "r.yaml:4: optimizer=5 is a whole number and must be a section of keys"),
        ("optimizer:\n  name: muon\n  momentum: x", "r.yaml:6: optimizer.momentum='x' is text and must be a number"),
        ("optimizer: {name: sgd, nesterov: true, momentum: 0.0}", "r.yaml:4: optimizer.nesterov=true needs a momentum"),
        ("schedule: {decay_steps: 5}", "r.yaml:4: schedule.decay_steps would be ignored with schedule.name=linear, "),
        ("schedule: {name: wsd}", "r.yaml:4: schedule.decay_steps is missing and has no default"),
        (
            "schedule: {name: wsd, warmup_steps: 6, decay_steps: 5}",
            "r.yaml: schedule.warmup_steps=6 + schedule.decay_steps=5 (= 11) is longer than train.steps=10",
        ),
        (
            "schedule: {name: one_cycle, warmup_steps: 6}",
            "r.yaml: schedule.warmup_steps=6 + the way down of the same length=6 (= 12) is longer than train.steps=10",
        ),
        ("schedule: {warmup_steps: 11}", "r.yaml: schedule.warmup_steps=11 is longer than train.steps=10"),
    ],
)
def test_a_mistake_names_its_place_key_value_and_rule(added, message):
    found = refusal(RECIPE + added + "\n")
    assert found.startswith(message)
    assert "\n" not in found


def test_a_number_in_place_of_a_list_is_refused():
    found = refusal(RECIPE.replace("shards: somewhere", "text: 5"))
    assert found == "r.yaml:2: data.text=5 is a whole number and must be a list"


def test_a_wrong_name_says_which_characters_are_allowed():
    found = refusal(RECIPE.replace("tiny", "a/b"))
    assert found.startswith("r.yaml:1: name='a/b' must be letters, digits, '.', '_' and '-'")


def test_unknown_keys_come_before_what_they_left_out():
    found = refusal(RECIPE.replace("steps: 10", "stepz: 10"))
    assert found == (
        "r.yaml:3: train.stepz is not a known key; did you mean steps?; "
        "r.yaml:3: train.steps is missing and has no default"
    )


def test_many_mistakes_are_counted_after_the_first_three():
    found = refusal(RECIPE + "\n".join(f"unknown{number}: 1" for number in range(5)) + "\n")
    assert found.count("is not a known key") == 3
    assert found.endswith("; and 2 more")


def test_a_section_with_its_own_rule_is_not_named_twice():
    found = refusal(RECIPE.replace("shards: somewhere", "max_seq_len: 128"))
    assert found.startswith("r.yaml:2: data: set exactly one of data.shards")


def test_long_values_are_cut():
    assert len(refusal(RECIPE + f"seed: {'x' * 500}\n")) < 150


def test_known_keys_reach_into_every_section():
    keys = list(known_keys(Config))
    assert len(keys) == len(set(keys))
    assert {"name", "tokenizer", "tokenizer.vocab_size", "train.steps", "model.hidden_size"} <= set(keys)


def test_dotted_paths_show_list_positions():
    assert dotted(("data", "text", 0)) == "data.text[0]"
    assert dotted(()) == ""
