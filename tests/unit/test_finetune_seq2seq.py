"""Fine-tuning from text to text on tiny files: it learns, in every layout alike, and starts from trained encoders."""

from __future__ import annotations

import io
import json
from pathlib import Path

import pytest
import torch
from command_line import Commands
from small_corpus import small_tokenizer
from small_task import write_recipe, write_translations

from trainer.checkpoint_files import CheckpointReader
from trainer.config import ModelConfig
from trainer.errors import UserError
from trainer.export import export_checkpoint
from trainer.finetune_setup import set_up_finetuning
from trainer.loop import Trainer
from trainer.metrics import MetricsWriter, read_records
from trainer.model.create import create_model
from trainer.model.hf_export import export_hf
from trainer.progress import ProgressReporter
from trainer.recipe import load_finetune_recipe
from trainer.run_folder import describe_run
from trainer.runtime import Runtime
from trainer.task_predict import Predictor, score_run, write_predictions

pytest.importorskip("sacrebleu")
pytest.importorskip("tokenizers")

TASK = "  name: translation\n  target_length: 8"
ONE_EPOCH = ["train.epochs=1", "evaluation.every_steps=13"]


@pytest.fixture(scope="module")
def recipe(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A recipe that translates numbers."""
    folder = tmp_path_factory.mktemp("numbers")
    write_translations(folder)
    return write_recipe(folder, task=TASK, pieces=28)


def train(recipe: Path, runtime: Runtime, folder: Path, *settings: str, told: list[str] | None = None) -> Path:
    config = load_finetune_recipe(str(recipe), overrides=[f"runs_dir={folder}", *settings])
    report = told.append if told is not None else lambda text: None
    run = set_up_finetuning(config, runtime=runtime, resume="auto", report=report)
    describe_run(config, plan=run.ds_plan, runtime=runtime)
    progress = ProgressReporter(run.total_steps, start_step=run.state.step, is_main=False)
    try:
        with MetricsWriter(config.run_dir, is_main=True, resume_step=run.state.step) as metrics:
            Trainer(run, metrics=metrics, progress=progress).train()
    finally:
        run.engine.close()
    return folder / "tiny"


def curve(run_dir: Path, key: str) -> list[float]:
    return [record[key] for record in read_records(run_dir / "metrics.jsonl") if key in record]


@pytest.fixture(scope="module")
def trained(recipe: Path, runtime: Runtime, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that has learnt the task; nobody may change it."""
    settings = ["train.epochs=24", "evaluation.every_steps=150", "evaluation.metric=chrf"]
    faster = ["optimizer.learning_rate=5e-3", "schedule.warmup_steps=10", "start.model.initializer_range=0.2"]
    plain = ["task.label_smoothing=0.0", "task.beams=1"]
    return train(recipe, runtime, tmp_path_factory.mktemp("trained"), *settings, *faster, *plain)


@pytest.fixture(scope="module")
def once(recipe: Path, runtime: Runtime, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of one epoch; nobody may change it."""
    return train(recipe, runtime, tmp_path_factory.mktemp("once"), *ONE_EPOCH)


def test_it_learns_to_translate(trained: Path) -> None:
    assert curve(trained, "train/loss")[-1] < 0.2 * curve(trained, "train/loss")[0]
    assert score_run(trained, which="auto")["parts"]["test"]["chrf"] > 95.0


def test_predictions_come_in_the_order_of_the_lines(
    once: Path, recipe: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    test = recipe.parent / "test.tsv"
    sources = [line.split("\t")[0] for line in test.read_text().splitlines()[1:]]
    assert write_predictions(once, which="auto", source=str(test), out=tmp_path / "out.jsonl") == len(sources)
    found = [json.loads(line) for line in (tmp_path / "out.jsonl").read_text().splitlines()]
    for source, prediction in list(zip(sources, found, strict=True))[:4]:
        monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(f"{source}\n".encode())))
        assert write_predictions(once, which="auto", source="-", out=None) == 1
        alone = json.loads(capsys.readouterr().out)
        assert alone == {"text": prediction["text"], "score": pytest.approx(prediction["score"], abs=1e-4)}


@pytest.mark.parametrize(
    "settings", [["train.micro_batch_size=8"], ["engine.ds_config=zero0"], ["engine.ds_config=zero3"]]
)
def test_micro_batches_and_zero_stages_give_the_same_curve_and_texts(
    settings: list[str], recipe: Path, runtime: Runtime, once: Path, tmp_path: Path
) -> None:
    run_dir = train(recipe, runtime, tmp_path, *ONE_EPOCH, *settings)
    assert len(curve(once, "train/loss")) == 13
    for key in ("train/loss", "validation/loss", "validation/chrf"):
        assert curve(run_dir, key) == pytest.approx(curve(once, key), rel=1e-5), key


def test_two_processes_that_each_hold_half_of_the_weights_write_the_same(
    commands: Commands, recipe: Path, once: Path, tmp_path: Path
) -> None:
    settings = [word for setting in [*ONE_EPOCH, "engine.ds_config=zero3"] for word in ("--set", setting)]
    ended = commands.run_ranks("finetune", recipe, *settings, cwd=tmp_path, ranks=2)
    assert [(done.code, done.err) for done in ended] == [(0, ""), (0, "")], ended
    for key in ("train/loss", "validation/loss", "validation/chrf"):
        assert curve(tmp_path / "runs/tiny", key) == pytest.approx(curve(once, key), rel=1e-5), key


def test_smoothing_is_part_of_training_alone(recipe: Path, runtime: Runtime, once: Path, tmp_path: Path) -> None:
    plain = train(recipe, runtime, tmp_path, *ONE_EPOCH, "task.label_smoothing=0.0", "optimizer.learning_rate=1e-12")
    smooth = train(recipe, runtime, tmp_path / "b", *ONE_EPOCH, "optimizer.learning_rate=1e-12")
    assert curve(plain, "validation/loss") == pytest.approx(curve(smooth, "validation/loss"), rel=1e-6)
    assert curve(plain, "train/loss")[0] != pytest.approx(curve(smooth, "train/loss")[0], rel=1e-4)


def test_an_encoder_of_another_family_is_refused(recipe: Path, runtime: Runtime, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"^task\.name=translation: .* the encoder's family is modernbert; start from"):
        train(recipe, runtime, tmp_path, "start.model.family=modernbert")


def test_fewer_records_are_scored_during_training(recipe: Path, runtime: Runtime, once: Path, tmp_path: Path) -> None:
    told: list[str] = []
    run_dir = train(recipe, runtime, tmp_path, *ONE_EPOCH, "evaluation.max_records=5", told=told)
    assert any(line.startswith("5 validation records, ") for line in told)
    assert curve(run_dir, "validation/loss") != curve(once, "validation/loss")


def test_what_was_cut_is_counted(recipe: Path, runtime: Runtime, tmp_path: Path) -> None:
    told: list[str] = []
    train(recipe, runtime, tmp_path, "train.epochs=null", "train.steps=1", "task.target_length=3", told=told)
    assert " longer than 32 (targets than 3) were cut, " in told[0]


def test_the_decoder_starts_from_the_encoder_and_its_head_from_the_masked_one(
    recipe: Path, runtime: Runtime, tmp_path: Path
) -> None:
    shape = ModelConfig(
        hidden_size=16, num_layers=2, num_heads=2, intermediate_size=32, max_positions=32, vocab_size=300
    )
    pretrained = create_model(shape, seed=9)
    export_hf(
        pretrained.state_dict(),
        config=shape,
        tokenizer_folder=small_tokenizer(),
        out=tmp_path / "hf",
        max_seq_len=32,
    )
    started = ["start.model=null", "start.tokenizer=null", f"start.path={tmp_path}/hf"]
    still = ["train.epochs=null", "train.steps=1", "optimizer.learning_rate=1e-12", "optimizer.weight_decay=0.0"]
    run_dir = train(recipe, runtime, tmp_path / "runs", *started, *still)
    weights = CheckpointReader(run_dir / "checkpoints/step-00000001").weights()
    before = dict(pretrained.named_parameters())
    for name, weight in before.items():
        if name.startswith("encoder."):
            assert torch.allclose(weights[name], weight, atol=1e-8), name
            if name != "encoder.embeddings.word.weight":
                own = name.replace("encoder.", "head.decoder.", 1)
                assert torch.allclose(weights[own], weight, atol=1e-8), own
        else:
            own = name.replace("head.", "head.predictions.", 1)
            assert torch.allclose(weights[own], weight, atol=1e-8), own
    crossed = [name for name in weights if ".cross_attention" in name]
    assert len(crossed) == 2 * 10
    others = weights.keys() - before.keys() - set(crossed)
    assert {name.split(".")[1] for name in others} == {"decoder", "predictions"}


def test_frozen_layers_keep_the_words_of_both_sides(recipe: Path, runtime: Runtime, tmp_path: Path) -> None:
    settings = ["train.epochs=null", "train.steps=4", "train.frozen_layers=1"]
    every = ["checkpoint.every_steps=1", "checkpoint.keep_last=4"]
    run_dir = train(recipe, runtime, tmp_path, *settings, *every)
    first, last = (CheckpointReader(run_dir / f"checkpoints/step-0000000{step}").weights() for step in (1, 4))
    same = {name for name in first if torch.equal(first[name], last[name])}
    assert same == {name for name in first if name.startswith(("encoder.embeddings.", "encoder.layers.0."))}


def test_a_run_is_exported_as_a_model_that_writes_the_same(trained: Path, tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    folder = export_checkpoint(trained, which="auto", out=tmp_path / "hf")
    model = transformers.EncoderDecoderModel.from_pretrained(folder).eval()
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    lines = ["one", "two three", "four"]
    inputs = tokenizer(lines, return_tensors="pt", padding=True)
    written = model.generate(inputs["input_ids"], attention_mask=inputs["attention_mask"], num_beams=1)
    predictor = Predictor.load(trained, which="auto")
    predictions = predictor.predict([predictor.reader.from_line(line, where="x:1") for line in lines])
    assert tokenizer.batch_decode(written, skip_special_tokens=True) == [one["text"] for one in predictions]
