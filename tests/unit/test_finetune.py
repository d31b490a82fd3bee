"""Fine-tuning on tiny files: it learns, resumes bit for bit, stops early, and every knob does something."""

from __future__ import annotations

import io
import json
import re
from pathlib import Path

import pytest
import torch
from small_run import train_on
from small_task import write_entities, write_recipe, write_sentences, write_sentiment

from trainer.checkpoint_files import CheckpointReader
from trainer.errors import UserError
from trainer.export import export_checkpoint
from trainer.finetune import of_seeds, summarize
from trainer.finetune_setup import set_up_finetuning
from trainer.loop import Trainer
from trainer.metrics import MetricsWriter, read_records
from trainer.progress import ProgressReporter
from trainer.recipe import load_finetune_recipe
from trainer.runtime import Runtime
from trainer.task_predict import Predictor, predict_to, score_run, write_predictions

pytest.importorskip("sklearn")
pytest.importorskip("seqeval")
pytest.importorskip("tokenizers")


@pytest.fixture(scope="module")
def sentiment(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A recipe over a few sentences whose label hangs on one word."""
    folder = tmp_path_factory.mktemp("sentiment")
    write_sentiment(folder)
    return write_recipe(folder)


def curve(folder: Path, key: str) -> dict[int, float]:
    return {record["step"]: record[key] for record in read_records(folder / "tiny/metrics.jsonl") if key in record}


@pytest.fixture(scope="module")
def trained(sentiment: Path, runtime: Runtime, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a run that has learnt the task; nobody may change it."""
    folder = tmp_path_factory.mktemp("trained")
    train_on(sentiment, runtime, folder, "train.epochs=12", "evaluation.every_steps=24")
    return folder


def test_it_learns_the_task_and_keeps_the_best_checkpoint(trained: Path) -> None:
    accuracy = curve(trained, "validation/accuracy")
    assert sorted(accuracy) == [24, 48, 72]
    best = max(accuracy, key=lambda step: (accuracy[step], -step))
    scores = score_run(trained / "tiny", which="auto")
    assert scores["checkpoint"].endswith(f"step-{best:08d}")
    assert scores["parts"]["validation"]["accuracy"] == accuracy[best]
    assert scores["parts"]["test"]["accuracy"] > 0.9
    assert curve(trained, "train/loss")[72] < 0.3 < curve(trained, "train/loss")[1]


def test_predictions_keep_the_order_and_agree_with_the_scores(trained: Path, sentiment: Path, tmp_path: Path) -> None:
    run_dir, test = trained / "tiny", sentiment.parent / "test.tsv"
    lines = test.read_text().splitlines()[1:]
    assert write_predictions(run_dir, which="auto", source=str(test), out=tmp_path / "out.jsonl") == len(lines)
    found = [json.loads(line) for line in (tmp_path / "out.jsonl").read_text().splitlines()]
    hits = [prediction["label"] == line.split("\t")[0] for prediction, line in zip(found, lines, strict=True)]
    assert sum(hits) / len(hits) == pytest.approx(score_run(run_dir, which="auto")["parts"]["test"]["accuracy"])
    assert all(sum(prediction["scores"].values()) == pytest.approx(1.0) for prediction in found)
    text = tmp_path / "plain.txt"
    text.write_text("\n".join(line.split("\t")[1] for line in lines) + "\n")
    predictor = Predictor.load(run_dir, which="auto")
    with (tmp_path / "plain.jsonl").open("w") as out:
        predict_to(predictor, source=str(text), out=out)
    again = [json.loads(line) for line in (tmp_path / "plain.jsonl").read_text().splitlines()]
    assert [prediction["label"] for prediction in again] == [prediction["label"] for prediction in found]


def test_a_bad_line_leaves_no_half_written_predictions(trained: Path, tmp_path: Path) -> None:
    text = tmp_path / "bad.txt"
    text.write_text("a fine film\n\ndull\n")
    with pytest.raises(UserError, match=r"bad\.txt:2: the line must be a text that is not empty"):
        write_predictions(trained / "tiny", which="auto", source=str(text), out=tmp_path / "out.jsonl")
    assert [path.name for path in tmp_path.iterdir()] == ["bad.txt"]


def test_one_line_on_standard_input_gives_one_line(
    trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(b"the story was awful\n")))
    assert write_predictions(trained / "tiny", which="auto", source="-", out=None) == 1
    assert json.loads(capsys.readouterr().out)["label"] == "neg"
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(b"dull\n\xff\n")))
    with pytest.raises(UserError, match=r"standard input:2: not UTF-8 at byte 0 of the line \(0xff\)"):
        write_predictions(trained / "tiny", which="auto", source="-", out=None)


def test_stopped_and_started_again_it_is_as_if_it_had_never_stopped(
    sentiment: Path, runtime: Runtime, tmp_path: Path
) -> None:
    settings = ["checkpoint.every_steps=5", "task.dropout=0.2", "schedule.warmup_steps=3"]
    train_on(sentiment, runtime, tmp_path / "whole", *settings)
    told: list[str] = []
    config = load_finetune_recipe(str(sentiment), overrides=[f"runs_dir={tmp_path}/cut", *settings])
    run = set_up_finetuning(config, runtime=runtime, resume="auto", report=told.append)
    with MetricsWriter(config.run_dir, is_main=True, resume_step=0) as metrics:
        trainer = Trainer(run, metrics=metrics, progress=ProgressReporter(12, start_step=0, is_main=False))
        engine_step, steps = run.engine.train_step, 0

        def interrupted(*arguments: object, **options: object) -> object:
            nonlocal steps
            steps += 1
            if steps > 7:
                trainer._writer.wait()  # on a busy machine the checkpoint of step 6 is not written yet
                raise KeyboardInterrupt
            return engine_step(*arguments, **options)  # type: ignore[arg-type]

        run.engine.train_step = interrupted  # type: ignore[method-assign, assignment]
        with pytest.raises(KeyboardInterrupt):
            trainer.train()
        run.engine.close()
    train_on(sentiment, runtime, tmp_path / "cut", *settings, told=told)
    # The evaluation of step 6 was the best so far, and saved.
    assert any(line.endswith("step-00000006 at step 6") for line in told)
    for key in ("train/loss", "validation/loss"):
        assert curve(tmp_path / "cut", key) == curve(tmp_path / "whole", key)


def test_micro_batches_and_zero_stages_give_the_same_curve(sentiment: Path, runtime: Runtime, tmp_path: Path) -> None:
    reference = None
    for number, settings in enumerate(
        ([], ["train.micro_batch_size=8"], ["engine.ds_config=zero0"], ["engine.ds_config=zero3"])
    ):
        train_on(sentiment, runtime, tmp_path / str(number), "train.epochs=1", "train.layer_decay=0.8", *settings)
        losses = list(curve(tmp_path / str(number), "train/loss").values())
        reference = reference or losses
        assert losses == pytest.approx(reference, rel=1e-5), settings
    assert reference is not None
    assert len(reference) == 6


def test_frozen_layers_stay_as_they_are_bit_for_bit(sentiment: Path, runtime: Runtime, tmp_path: Path) -> None:
    for stage in ("zero0", "zero2", "zero3"):
        settings = ["train.epochs=1", "train.frozen_layers=1", f"engine.ds_config={stage}"]
        run = train_on(
            sentiment, runtime, tmp_path / stage, *settings, "checkpoint.every_steps=1", "checkpoint.keep_last=9"
        )
        first, last = (CheckpointReader(run.checkpoints.path(step)).weights() for step in (1, 6))
        same = {name for name in first if torch.equal(first[name], last[name])}
        assert same == {name for name in first if name.startswith(("encoder.embeddings.", "encoder.layers.0."))}


def test_training_ends_when_patience_is_over(sentiment: Path, runtime: Runtime, tmp_path: Path) -> None:
    settings = ["train.epochs=9", "evaluation.every_steps=2", "evaluation.patience=2", "optimizer.learning_rate=1e-12"]
    run = train_on(sentiment, runtime, tmp_path, *settings)
    # Nothing is learnt: the first evaluation stays the best one.
    assert (run.state.step, run.state.best_step) == (6, 2)
    assert run.checkpoints.steps()[-1] == 6
    assert train_on(sentiment, runtime, tmp_path, *settings).state.step == 6


def test_the_metric_named_decides_the_best(sentiment: Path, runtime: Runtime, tmp_path: Path) -> None:
    run = train_on(sentiment, runtime, tmp_path, "train.steps=3", "train.epochs=null", "evaluation.metric=f1_macro")
    assert run.state.best_score == -curve(tmp_path, "validation/f1_macro")[3]
    with pytest.raises(UserError, match=r"evaluation\.metric='f1' is none of the task's metrics, which are accuracy"):
        train_on(sentiment, runtime, tmp_path / "b", "evaluation.metric=f1")


@pytest.mark.parametrize("kind", ["segmentation", "tagging"])
def test_words_and_characters_are_tagged(kind: str, runtime: Runtime, tmp_path: Path) -> None:
    write_sentences(tmp_path)
    write_entities(tmp_path)
    task = f"  name: {kind}\n  head: {{bilstm_size: 8, crf: true}}"
    suffix, pieces, longest = {"segmentation": ("txt", 16, 12), "tagging": ("conll", 27, 24)}[kind]
    recipe = write_recipe(tmp_path, task=task, suffix=suffix, pieces=pieces)
    settings = ["train.epochs=16", "optimizer.learning_rate=1e-2", "evaluation.every_steps=40"]
    train_on(recipe, runtime, tmp_path / "runs", *settings, f"data.max_length={longest}")
    scores = score_run(tmp_path / "runs/tiny", which="auto")
    assert scores["parts"]["test"]["f1"] > 0.9
    line = Predictor.load(tmp_path / "runs/tiny", which="latest")
    record = line.reader.from_line("甲乙丙" if kind == "segmentation" else "the film ann lee", where="x:1")
    (prediction,) = line.predict([record])
    if kind == "segmentation":
        assert prediction["words"] == ["甲", "乙丙"]
    else:
        assert [(entity["text"], entity["type"]) for entity in prediction["entities"]] == [("ann lee", "PER")]


def test_it_starts_from_a_run_and_from_what_that_run_exports(
    sentiment: Path, trained: Path, runtime: Runtime, tmp_path: Path
) -> None:
    settings = ["start.model=null", "start.tokenizer=null", "train.steps=1", "train.epochs=null"]
    before = CheckpointReader(Path(score_run(trained / "tiny", which="auto")["checkpoint"])).weights()
    exported = export_checkpoint(trained / "tiny", which="auto", out=tmp_path / "hf")
    for number, path in enumerate((trained / "tiny", exported)):
        told: list[str] = []
        config = load_finetune_recipe(
            str(sentiment), overrides=[f"runs_dir={tmp_path}/{number}", *settings, f"start.path={path}"]
        )
        run = set_up_finetuning(config, runtime=runtime, resume="auto", report=told.append)
        weights = dict(run.engine._engine.module.named_parameters())
        run.engine.close()
        assert all(torch.equal(weights[name], before[name]) for name in weights if name.startswith("encoder."))
        assert not torch.equal(weights["head.project.weight"], before["head.project.weight"])
        assert any(line.endswith("new: head.project.weight, head.project.bias") for line in told), told


def test_a_start_that_is_no_model_is_named(sentiment: Path, runtime: Runtime, tmp_path: Path) -> None:
    clear = ["start.model=null", "start.tokenizer=null"]
    with pytest.raises(UserError, match=r"start\.path: .*nothing is neither a run folder"):
        train_on(sentiment, runtime, tmp_path, *clear, f"start.path={tmp_path}/nothing")
    with pytest.raises(UserError, match=r"start\.path: package:no_such/model names the Python package 'no_such'"):
        train_on(sentiment, runtime, tmp_path, *clear, "start.path=package:no_such/model")


def test_what_was_cut_is_counted_and_a_long_warmup_refused(sentiment: Path, runtime: Runtime, tmp_path: Path) -> None:
    told: list[str] = []
    train_on(sentiment, runtime, tmp_path, "train.steps=1", "train.epochs=null", "data.max_length=8", told=told)
    assert re.fullmatch(r"48 training records, \d+ tokens; \d+ longer than 8 were cut, \d+ tokens left out", told[0])
    with pytest.raises(UserError, match=r"schedule\.warmup_steps=13 is longer than the run's steps=12"):
        train_on(sentiment, runtime, tmp_path / "b", "schedule.warmup_steps=13")
    with pytest.raises(UserError, match=r"train\.frozen_layers=3, and the model has 2 layers"):
        train_on(sentiment, runtime, tmp_path / "c", "train.frozen_layers=3")


def test_a_checkpoint_of_another_task_is_refused(sentiment: Path, runtime: Runtime, tmp_path: Path) -> None:
    train_on(sentiment, runtime, tmp_path, "train.steps=1", "train.epochs=null")
    with pytest.raises(UserError, match=r"was made for another model or task \(labels \['neg', 'pos'\] →"):
        train_on(sentiment, runtime, tmp_path, "task.labels=[pos, neg]")
    with pytest.raises(UserError, match=r"was made for another model or task \(start\.tokenizer\.vocab_size 40 → 35\)"):
        train_on(sentiment, runtime, tmp_path, "start.tokenizer.vocab_size=35")
    with pytest.raises(UserError, match=r"was made with another seed"):
        train_on(sentiment, runtime, tmp_path, "seed=4")


def test_an_unknown_label_of_the_test_file_is_found_before_training(
    sentiment: Path, runtime: Runtime, tmp_path: Path
) -> None:
    wrong = tmp_path / "wrong.tsv"
    wrong.write_text("label\ttext\nneutral\ta film\n")
    with pytest.raises(
        UserError, match=r"wrong\.tsv:2: the label 'neutral' is unknown; the training file has neg, pos"
    ):
        train_on(sentiment, runtime, tmp_path, f"data.test={wrong}")


def test_seeds_become_runs_of_their_own_and_a_mean_with_deviation(sentiment: Path, tmp_path: Path) -> None:
    config = load_finetune_recipe(str(sentiment), overrides=[f"runs_dir={tmp_path}", "seeds=[1, 2]"])
    assert [(one.seed, one.run_dir) for one in of_seeds(config)] == [
        (1, tmp_path / "tiny/seed-1"),
        (2, tmp_path / "tiny/seed-2"),
    ]
    summary = summarize([1, 2], [{"parts": {"test": {"f1": 0.5}}}, {"parts": {"test": {"f1": 0.7}}}])
    assert summary["parts"]["test"]["f1"] == pytest.approx({"mean": 0.6, "deviation": 0.1414214})


def test_a_vocabulary_that_the_texts_do_not_allow_is_told_in_the_recipes_words(
    sentiment: Path, runtime: Runtime, tmp_path: Path
) -> None:
    with pytest.raises(UserError, match=r"^start\.tokenizer\.vocab_size=900 is larger than this text allows; the larg"):
        train_on(sentiment, runtime, tmp_path, "start.tokenizer.vocab_size=900")
