"""Adapters: what they compute, that nothing else of the encoder is trained, resume to the bit, and merging."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from command_line import Commands
from small_run import finetuned_run, train_steps
from small_task import write_recipe, write_sentiment
from torch import nn

from trainer.checkpoint_files import CheckpointReader
from trainer.errors import UserError
from trainer.export import export_checkpoint, open_encoder
from trainer.finetune_config import LoraConfig
from trainer.metrics import read_records
from trainer.model.hf_import import import_hf
from trainer.model.weights import load_weights
from trainer.recipe import load_finetune_recipe
from trainer.runtime import Runtime
from trainer.task_evaluate import plain_predict_step
from trainer.task_model import load_trained
from trainer.task_predict import Predictor
from trainer.tasks.examples import make_batch
from trainer.tasks.lora import LoraLinear, add_lora, is_adapter, merge_lora

pytest.importorskip("sklearn")

LORA = "train.lora={rank: 2, alpha: 4.0, dropout: 0.1}"


@pytest.fixture(scope="module")
def recipe(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("lora")
    write_sentiment(folder)
    return write_recipe(folder, task="  name: classification\n  dropout: 0.0")


@pytest.fixture(scope="module")
def adapted(recipe: Path, runtime: Runtime, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run with adapters; nobody may change it."""
    folder = tmp_path_factory.mktemp("adapted")
    return finetuned_run(recipe, runtime, folder, LORA, "train.epochs=6", "optimizer.learning_rate=2e-2")


def test_a_projection_is_corrected_by_alpha_over_rank_times_b_a() -> None:
    base = nn.Linear(3, 4)
    layer = LoraLinear(base, config=LoraConfig(rank=2, alpha=6.0))
    layer.weight.data, layer.bias.data = base.weight.data, base.bias.data
    values = torch.randn(5, 3)
    torch.testing.assert_close(layer(values), base(values))
    nn.init.normal_(layer.lora_a)
    nn.init.normal_(layer.lora_b)
    expected = base(values) + 3.0 * values @ layer.lora_a.T @ layer.lora_b.T
    torch.testing.assert_close(layer(values), expected)
    merged = merge_lora(
        {f"x.{name}": weight for name, weight in layer.state_dict().items()}, config=LoraConfig(rank=2, alpha=6.0)
    )
    assert merged.keys() == {"x.weight", "x.bias"}
    torch.testing.assert_close(nn.functional.linear(values, merged["x.weight"], merged["x.bias"]), expected)


def test_dropout_is_of_what_the_adapter_reads() -> None:
    layer = LoraLinear(nn.Linear(64, 2), config=LoraConfig(rank=2, dropout=0.5))
    nn.init.normal_(layer.lora_a)
    nn.init.normal_(layer.lora_b)
    values = torch.ones(1, 64)
    assert not torch.equal(layer(values), layer(values))
    assert torch.equal(layer.eval()(values), layer(values))


@pytest.mark.parametrize("stage", ["zero0", "zero1", "zero2", "zero3"])
def test_adapters_and_head_are_trained_alone_and_resume_is_equal_to_the_bit(
    stage: str, recipe: Path, runtime: Runtime, tmp_path: Path
) -> None:
    settings = [LORA, f"engine.ds_config={stage}", "checkpoint.every_steps=5", "checkpoint.keep_last=9"]
    whole = train_steps(recipe, runtime, tmp_path / "whole", *settings)
    train_steps(recipe, runtime, tmp_path / "cut", *settings, until=5)
    cut = train_steps(recipe, runtime, tmp_path / "cut", *settings)
    first, last, again = (
        CheckpointReader(run.checkpoints.path(step)).weights() for run, step in ((whole, 5), (whole, 12), (cut, 12))
    )
    same = {name for name in first if torch.equal(first[name], last[name])}
    assert same == {name for name in first if name.startswith("encoder.") and not is_adapter(name)}
    assert sum(is_adapter(name) for name in first) == 8
    assert all(torch.equal(last[name], again[name]) for name in last)
    losses = [
        [
            record["train/loss"]
            for record in read_records(tmp_path / name / "tiny/metrics.jsonl")
            if "train/loss" in record
        ]
        for name in ("whole", "cut")
    ]
    assert losses[0] == losses[1]
    assert len(losses[0]) == 12


def test_the_stages_give_the_same_curve(recipe: Path, runtime: Runtime, tmp_path: Path) -> None:
    curves = []
    for stage in ("zero0", "zero2", "zero3"):
        train_steps(recipe, runtime, tmp_path / stage, "train.lora={rank: 2}", f"engine.ds_config={stage}")
        records = read_records(tmp_path / stage / "tiny/metrics.jsonl")
        curves.append([record["train/loss"] for record in records if "train/loss" in record])
    assert curves[1] == pytest.approx(curves[0], rel=1e-5)
    assert curves[2] == pytest.approx(curves[0], rel=1e-5)


@pytest.mark.parametrize("stage", ["zero2", "zero3"])
def test_two_processes_save_every_weight_once(
    stage: str, commands: Commands, recipe: Path, runtime: Runtime, tmp_path: Path
) -> None:
    settings = [LORA.replace("0.1", "0.0"), f"engine.ds_config={stage}", "train.epochs=1"]
    options = [part for setting in settings for part in ("--set", setting)]
    ended = commands.run_ranks("finetune", recipe, *options, cwd=tmp_path, ranks=2)
    assert [(done.code, done.err) for done in ended] == [(0, ""), (0, "")], ended
    train_steps(recipe, runtime, tmp_path / "alone", *settings, "schedule={name: linear}")
    # Reading refuses a weight of which an element is missing, or there twice.
    two, one = (
        CheckpointReader(folder / "tiny/checkpoints/step-00000006").weights()
        for folder in (tmp_path / "runs", tmp_path / "alone")
    )
    assert two.keys() == one.keys()
    for name, weight in two.items():
        torch.testing.assert_close(weight, one[name], atol=1e-5, rtol=1e-4)


def test_merged_weights_compute_what_adapters_do(adapted: Path, recipe: Path) -> None:
    trained = load_trained(adapted, which="auto")
    assert not any(is_adapter(name) for name, _ in trained.model.named_parameters())
    lora = trained.config.train.lora
    assert lora is not None
    unmerged = trained.task.create_model(trained.model.encoder.config)
    add_lora(unmerged, config=lora)
    weights = CheckpointReader(trained.checkpoint).weights()
    assert any(bool(weight.any()) for name, weight in weights.items() if name.endswith("lora_b"))
    load_weights(unmerged, weights, source="x")
    predictor = Predictor.load(adapted, which="auto")
    records = [predictor.reader.from_line(text, where="x") for text in ("a dull film", "great music")]
    batch = make_batch(trained.task.examples(records, predictor.tokenizer), term=trained.task.term)
    scores = plain_predict_step(unmerged, device=torch.device("cpu"))(batch).outputs["scores"]
    found = [[*prediction["scores"].values()] for prediction in predictor.predict(records)]
    torch.testing.assert_close(torch.tensor(found), scores, atol=1e-6, rtol=1e-5)


def test_it_is_exported_merged(adapted: Path, tmp_path: Path) -> None:
    _, weights, _ = open_encoder(adapted, which="auto")
    imported = import_hf(export_checkpoint(adapted, which="auto", out=tmp_path / "hf"))
    name = "encoder.layers.1.attention.value.weight"
    assert torch.equal(imported.weights[name], weights[name])
    raw = CheckpointReader(load_trained(adapted, which="auto").checkpoint).weights()
    assert not torch.equal(raw[name], weights[name])
    assert torch.equal(raw["encoder.layers.1.attention.key.weight"], weights["encoder.layers.1.attention.key.weight"])


def test_every_target_gets_an_adapter(adapted: Path) -> None:
    trained = load_trained(adapted, which="auto")
    targets = ["query", "key", "value", "output", "up", "down"]
    add_lora(trained.model, config=LoraConfig.model_validate({"rank": 3, "targets": targets}))
    ranks = [module.lora_a.shape[0] for module in trained.model.modules() if isinstance(module, LoraLinear)]
    assert ranks == [3] * 12


def test_another_rank_or_alpha_is_another_model(adapted: Path, recipe: Path, runtime: Runtime) -> None:
    with pytest.raises(UserError, match=r"another model or task \(train\.lora\.alpha 4\.0 → 8\.0\)"):
        train_steps(recipe, runtime, adapted.parent, LORA.replace("4.0", "8.0"), "train.epochs=7")
    with pytest.raises(UserError, match=r"another model or task \(train\.lora"):
        train_steps(recipe, runtime, adapted.parent, "train.epochs=7")


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (["train.frozen_layers=1"], r"train\.lora freezes all of the encoder; remove train\.frozen_layers"),
        (["train.lora.rank=0"], r"train\.lora\.rank=0 must be greater than 0"),
        (["train.lora.targets=[query, query]"], r"train\.lora\.targets names a projection twice"),
        (["train.lora.targets=[]"], r"train\.lora\.targets"),
        (["train.lora.targets=[querry]"], r"did you mean query\?"),
        (
            ["start.model=null", "start.encoder=bilstm"],
            r"train\.lora is for BERT's layers, and start\.encoder is bilst",
        ),
    ],
)
def test_what_adapters_do_not_go_with_is_refused(recipe: Path, settings: list[str], message: str) -> None:
    with pytest.raises(UserError, match=message):
        load_finetune_recipe(str(recipe), overrides=[LORA, *settings])
