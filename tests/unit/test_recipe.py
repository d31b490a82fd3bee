from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from trainer import recipe
from trainer.config import Config
from trainer.errors import UserError
from trainer.finetune_config import FineTuneConfig
from trainer.recipe import dump_config, load_any_recipe, load_recipe, parse_recipe

RECIPE = """\
name: tiny
data: {shards: somewhere, max_seq_len: 128}
train: {steps: 10, global_batch_size: 8, micro_batch_size: 4}
"""

TEXTS = st.text(st.characters(exclude_categories=["Cs"]), max_size=20)
POSITIVE = st.integers(min_value=1, max_value=2**63)
CONFIGS = st.builds(
    lambda name, texts, steps, learning_rate, vocab_size, seed, ds_config, deterministic: Config.model_validate(
        {
            "name": name,
            "seed": seed,
            "deterministic": deterministic,
            "data": {"text": texts},
            "tokenizer": None if vocab_size is None else {"vocab_size": vocab_size},
            "optimizer": {"learning_rate": learning_rate},
            "engine": {"ds_config": ds_config},
            "train": {"steps": steps, "global_batch_size": 8, "micro_batch_size": 4},
        }
    ),
    name=st.from_regex(r"[A-Za-z0-9][A-Za-z0-9._-]{0,8}", fullmatch=True),
    texts=st.lists(TEXTS, max_size=3),
    steps=POSITIVE,
    learning_rate=st.floats(min_value=0, exclude_min=True, allow_infinity=False),
    vocab_size=st.none() | POSITIVE,
    seed=st.integers(),
    ds_config=TEXTS,
    deterministic=st.booleans(),
)


def parse(text, *overrides):
    return parse_recipe(text, source="r.yaml", overrides=overrides)


def test_a_recipe_file_becomes_a_config_with_defaults(tmp_path):
    path = tmp_path / "tiny.yaml"
    path.write_text(RECIPE + "optimizer: {learning_rate: 1e-3}\n")
    config = load_recipe(str(path))
    assert config.name == "tiny"
    assert config.data.max_seq_len == 128
    assert config.optimizer.learning_rate == 1e-3
    assert config.optimizer.beta1 == 0.9
    assert config.run_dir == Path("runs/tiny")


def test_a_name_without_suffix_is_looked_up_among_the_recipes(tmp_path, monkeypatch):
    monkeypatch.setattr(recipe, "RECIPES_DIR", tmp_path)
    (tmp_path / "bert_base.yaml").write_text(RECIPE)
    assert load_recipe("bert_base").name == "tiny"
    with pytest.raises(UserError, match=r"'bert_bse' is neither .* did you mean bert_base\?"):
        load_recipe("bert_bse")
    with pytest.raises(UserError, match=r"'zzz' is neither .* there are bert_base"):
        load_recipe("zzz")


def test_a_missing_file_a_folder_and_bytes_that_are_no_text_are_refused(tmp_path):
    with pytest.raises(UserError, match=r"missing\.yaml: no such file"):
        load_recipe(str(tmp_path / "missing.yaml"))
    with pytest.raises(UserError, match="is a folder"):
        load_recipe(str(tmp_path))
    (tmp_path / "bad.yaml").write_bytes(b"name: \xff\n")
    with pytest.raises(UserError, match=r"bad\.yaml: not UTF-8 text at byte 6"):
        load_recipe(str(tmp_path / "bad.yaml"))


@pytest.mark.parametrize(("text", "message"), [("", "the recipe is empty"), ("- a\n", "found a list")])
def test_a_recipe_that_is_no_mapping_is_refused(text, message):
    with pytest.raises(UserError, match=f"r.yaml: .*{message}"):
        parse(text)


def test_overrides_win_over_the_file_and_the_last_wins_over_the_first():
    config = parse(RECIPE, "train.steps=7", "optimizer.learning_rate=1e-5", "train.steps=9", "model.norm=pre")
    assert (config.train.steps, config.optimizer.learning_rate, config.model.norm) == (9, 1e-5, "pre")


def test_overrides_may_set_lists_empty_values_and_sections_that_the_file_lacks():
    config = parse(RECIPE, "data.shards=", "data.text=[a.txt, b.jsonl]", "tokenizer.vocab_size=100")
    assert config.data.shards is None
    assert config.data.text == ["a.txt", "b.jsonl"]
    assert config.tokenizer is not None
    assert config.tokenizer.vocab_size == 100


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("train.steps", "--set train.steps: not of the form section.key=value"),
        ("=3", "--set =3: not of the form section.key=value"),
        ("train.stepz=3", "--set train.stepz=3: train.stepz is not a known key; did you mean steps?"),
        ("trian.steps=3", "--set trian.steps=3: trian.steps is not a known key; did you mean train.steps?"),
        ("train.steps=0", "--set train.steps=0: train.steps=0 must be greater than 0"),
        ("train.steps=[", "--set train.steps=[: while parsing a flow node"),
        ("model=5", "--set model=5: model=5 is a whole number and must be a section of keys"),
        ("model={norm: 1}", "--set model={norm: 1}: model.norm=1 must be 'post' or 'pre'"),
    ],
)
def test_a_wrong_override_names_itself(override, message):
    with pytest.raises(UserError) as caught:
        parse(RECIPE, override)
    assert str(caught.value).startswith(message)


@pytest.mark.parametrize("key", ["phases.steps", "phases[0].steps", "data.sources.weight", "train.batch_warmup[1]"])
def test_an_override_inside_a_list_asks_for_the_whole_list(key):
    name = key.removesuffix(".steps").removesuffix("[0]").removesuffix(".weight").removesuffix("[1]")
    with pytest.raises(UserError) as caught:
        parse(RECIPE, f"{key}=6")
    assert str(caught.value) == f"--set {key}=6: {name} is a list; set it as a whole, as in --set '{name}=[...]'"


def test_an_unknown_key_inside_a_list_names_the_nearest():
    with pytest.raises(UserError, match=r"phases\[0\]\.stepz is not a known key; did you mean steps\?"):
        parse(f"{RECIPE}phases: [{{stepz: 5}}]\n")


def test_an_override_below_something_that_is_no_section_reports_the_file():
    with pytest.raises(UserError, match=r"r\.yaml:4: model=5 is a whole number and must be a section of keys"):
        parse(RECIPE + "model: 5\n", "model.norm=pre")


def test_an_override_inside_what_the_recipe_writes_as_one_number_is_not_lost():
    with pytest.raises(UserError, match=r"one value for objective\.mask_rate, no keys; set objective\.mask_rate as a"):
        parse(RECIPE + "objective: {mask_rate: 0.3}\n", "objective.mask_rate.end=0.1")
    assert parse(RECIPE, "objective.mask_rate=0.3").objective.mask_rate.end == 0.3


@given(CONFIGS)
def test_a_dumped_config_loads_back_equal(config):
    assert parse_recipe(dump_config(config), source="dump") == config


def test_every_shipped_recipe_loads():
    for path in sorted(recipe.RECIPES_DIR.glob("*.yaml")):
        assert load_any_recipe(path.stem) == load_any_recipe(str(path))


FINE_TUNING = """\
name: a
start: {path: runs/b}
task: {name: tagging, head: {crf: true}}
data: {train: a.conll, validation: b.conll}
train: {epochs: 1, global_batch_size: 8, micro_batch_size: 8}
"""


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("crf: true", "crff: true", "r.yaml:3: task.head.crff is not a known key; did you mean crf?"),
        ("crf: true", "crf: 1", "r.yaml:3: task.head.crf=1 is a whole number and must be true or false"),
        (
            "tagging",
            "taging",
            "r.yaml:3: task.name='taging' must be one of 'classification', 'tagging', 'segmentation', ",
        ),
        ("name: tagging, ", "", "r.yaml:3: task.name is missing and has no default"),
        ("epochs: 1", "epochs: 1, steps: 2", "r.yaml:5: train: set exactly one of train.epochs and train.steps"),
        (
            "path: runs/b",
            "tokenizer: {vocab_size: 9}",
            "r.yaml:2: start: set exactly one of start.path (trained weights) and start.",
        ),
        ("path: runs/b", "path: a, tokenizer: {}", "r.yaml:2: start.tokenizer goes with start.model"),
        ("name: a", "name: a\nseeds: [1, 1]", "r.yaml: seeds names a seed twice"),
        (
            "path: runs/b",
            "model: {max_positions: 64}",
            "r.yaml: data.max_length=128 is longer than start.model.max_positions=64",
        ),
        (
            "name: tagging, head: {crf: true}",
            "name: classification, output: number, class_weights: balanced",
            "r.yaml:3: task.class_weights goes with output: label, and output is number; remove it",
        ),
    ],
)
def test_a_fine_tuning_recipe_is_checked_alike(old: str, new: str, message: str) -> None:
    with pytest.raises(UserError) as raised:
        parse_recipe(FINE_TUNING.replace(old, new), source="r.yaml")
    assert str(raised.value).startswith(message)


def test_a_resolved_fine_tuning_recipe_reads_back_equal() -> None:
    config = parse_recipe(FINE_TUNING, source="r.yaml", overrides=["task.head.bilstm_size=8"])
    assert isinstance(config, FineTuneConfig)
    assert parse_recipe(dump_config(config), source="again") == config
