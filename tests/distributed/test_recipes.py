"""Every recipe that comes along starts, trains two steps, evaluates and saves, in a small form of its own layout."""

import pytest
from launching import run, trainer_command, write_corpus

from trainer.config import Config
from trainer.recipe import RECIPES_DIR, load_any_recipe, load_recipe

RECIPES = sorted(path.stem for path in RECIPES_DIR.glob("*.yaml"))
# Those of fine-tuning take their two steps in tests/unit/test_finetune_recipes.py.
PRETRAINING = [name for name in RECIPES if isinstance(load_any_recipe(name), Config)]


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    return write_corpus(tmp_path_factory.mktemp("corpus") / "text.txt")


def test_the_recipes_are_these():
    assert PRETRAINING == [
        "bert_base",
        "bert_base_zh",
        "bert_books_two_phase",
        "bert_large",
        "bert_mini",
        "demo",
        "modernbert_mini",
        "parity",
        "roberta_base",
    ]
    assert sorted({*RECIPES} - {*PRETRAINING}) == [
        "chinese_decomposition",
        "chinese_ner",
        "chinese_segmentation",
        "debian_embedding",
        "debian_ranking",
        "debian_summaries",
        "dictionary_choices",
        "dictionary_questions",
        "english_chinese_translation",
        "movie_sentiment",
        "movie_sentiment_bilstm",
        "spam",
    ]


@pytest.mark.parametrize("name", RECIPES)
def test_a_recipe_opens_with_command_hardware_time_and_result(name):
    head = (RECIPES_DIR / f"{name}.yaml").read_text().split("\nname:")[0]
    assert f"{name}" in head.splitlines()[0] or name == "demo"
    assert all(f"# {part}:" in head for part in ("Hardware", "Time", "Result"))
    assert all(line.startswith("#") for line in head.splitlines())


@pytest.mark.parametrize("name", PRETRAINING)
def test_a_recipe_trains_two_steps_on_a_text_of_ones_own(name, corpus, tmp_path):
    small = {
        "data.text": f"[{corpus}]",
        "data.validation_fraction": "0.05",
        "tokenizer.vocab_size": "70",
        "model.num_layers": "2",
        "model.hidden_size": "64",
        "model.num_heads": "2",
        "model.intermediate_size": "128",
        "schedule.warmup_steps": "1",
        "train.steps": "2",
        "train.log_every_steps": "1",
        "train.global_batch_size": "4",
        "train.micro_batch_size": "1",
    }
    if load_recipe(name).evaluation is not None:
        small["evaluation.max_rows"] = "4"
    if load_recipe(name).phases:
        small["phases"] = "[{steps: 1, max_seq_len: 128, global_batch_size: 8, micro_batch_size: 2}, {steps: 1}]"
    settings = [part for key, value in small.items() for part in ("--set", f"{key}={value}")]
    output = run(trainer_command("pretrain", name, *settings, processes=2), cwd=tmp_path)
    assert "step 2/2" in output
    run_dir = tmp_path / "runs" / name
    assert (run_dir / "checkpoints" / "step-00000002" / "checksums.json").exists()
    assert (run_dir / "export" / "model.safetensors").exists() == load_recipe(name).export
