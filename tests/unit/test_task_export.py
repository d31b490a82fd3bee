"""Fine-tuned runs as transformers loads them, and every kind of run as ONNX: equal outputs, padding or not."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from small_run import finetuned_run
from small_task import sentiment_lines, write_entities, write_recipe, write_sentences, write_sentiment

from trainer.__main__ import main
from trainer.errors import UserError
from trainer.export import export_checkpoint
from trainer.imported import import_to
from trainer.model.bert import BertForMaskedLanguageModel
from trainer.model.weights import load_weights
from trainer.runtime import Runtime
from trainer.task_export import export_task
from trainer.task_predict import Predictor
from trainer.tasks.examples import Example, Record

pytest.importorskip("sklearn")
pytest.importorskip("seqeval")

TEXTS = ["the film was awful", "great", "a lovely night with music and a bright story"]
SENTENCES = ["the film ann lee", "rome", "a night was with music rome"]


def trained(runtime: Runtime, folder: Path, *, task: str, suffix: str, pieces: int, settings: tuple[str, ...]) -> Path:
    write_sentiment(folder)
    write_entities(folder)
    write_sentences(folder)
    recipe = write_recipe(folder, task=task, suffix=suffix, pieces=pieces)
    return finetuned_run(recipe, runtime, folder / "runs", "train.epochs=1", *settings)


@pytest.fixture(scope="module")
def classifiers(runtime: Runtime, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Runs that classify texts, by their pooling."""
    return {
        pooling: trained(
            runtime,
            tmp_path_factory.mktemp(pooling),
            task=f"  name: classification\n  pooling: {pooling}",
            suffix="tsv",
            pieces=40,
            settings=("start.model.norm=pre",) if pooling == "mean" else (),
        )
        for pooling in ("pooler", "mean", "first")
    }


@pytest.fixture(scope="module")
def tagger(runtime: Runtime, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that tags words by a projection."""
    folder = tmp_path_factory.mktemp("tagger")
    return trained(runtime, folder, task="  name: tagging", suffix="conll", pieces=27, settings=())


def examples(predictor: Predictor, texts: list[str]) -> tuple[list[Record], list[Example]]:
    records = [predictor.reader.from_line(text, where="x") for text in texts]
    return records, predictor.task.examples(records, predictor.tokenizer)


def padded(found: list[Example], *, extra: int = 3) -> dict[str, Any]:
    """The examples as int64 arrays [batch, longest + extra] with junk where there is padding."""
    length = max(map(len, found)) + extra
    arrays = {name: np.full((len(found), length), 1, dtype=np.int64) for name in ("input_ids", "token_type_ids")}
    arrays["attention_mask"] = np.zeros((len(found), length), dtype=np.int64)
    for row, example in enumerate(found):
        arrays["input_ids"][row, : len(example)] = example.input_ids
        arrays["token_type_ids"][row, : len(example)] = example.token_type_ids
        arrays["attention_mask"][row, : len(example)] = 1
    return arrays


def probabilities(logits: Any) -> Any:
    return torch.as_tensor(logits).double().softmax(-1).numpy()


def expected_scores(predictor: Predictor, records: list[Record]) -> list[list[float]]:
    return [[*prediction["scores"].values()] for prediction in predictor.predict(records)]


def test_a_classifier_loads_as_transformers_own_and_gives_its_scores(
    classifiers: dict[str, Path], tmp_path: Path
) -> None:
    transformers = pytest.importorskip("transformers")
    out = export_task(classifiers["pooler"], which="auto", out=tmp_path / "hf")
    model = transformers.AutoModelForSequenceClassification.from_pretrained(out)
    assert type(model).__name__ == "BertForSequenceClassification"
    assert (model.config.id2label, model.config.problem_type) == (
        {0: "neg", 1: "pos"},
        "single_label_classification",
    )
    predictor = Predictor.load(classifiers["pooler"], which="auto")
    records, found = examples(predictor, TEXTS)
    with torch.no_grad():
        logits = model.eval()(**{name: torch.from_numpy(values) for name, values in padded(found).items()}).logits
    np.testing.assert_allclose(probabilities(logits), expected_scores(predictor, records), atol=1e-5)
    tokenizer = transformers.AutoTokenizer.from_pretrained(out)
    assert tokenizer(TEXTS[0])["input_ids"] == found[0].input_ids.tolist()


def test_a_tagger_loads_as_transformers_own_and_gives_its_tags(tagger: Path, tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    out = export_task(tagger, which="auto", out=tmp_path / "hf")
    model = transformers.AutoModelForTokenClassification.from_pretrained(out)
    labels = ["B-LOC", "B-PER", "I-PER", "O"]
    assert [model.config.id2label[number] for number in range(4)] == labels
    predictor = Predictor.load(tagger, which="auto")
    records, found = examples(predictor, SENTENCES)
    with torch.no_grad():
        logits = model.eval()(**{name: torch.from_numpy(values) for name, values in padded(found).items()}).logits
    check_tags(predictor, records, found, logits)


def check_tags(predictor: Predictor, records: list[Record], found: list[Example], logits: Any) -> None:
    scores = probabilities(logits)
    for row, (example, prediction) in enumerate(zip(found, predictor.predict(records), strict=True)):
        of_words = scores[row][example.rows]
        np.testing.assert_allclose(of_words.max(-1), prediction["scores"], atol=1e-5)
        assert [predictor.task.labels[number] for number in of_words.argmax(-1)] == prediction["tags"]


@pytest.mark.parametrize("pooling", ["first", "mean"])
def test_what_transformers_cannot_express_is_refused_with_the_reason(
    classifiers: dict[str, Path], tmp_path: Path, pooling: str
) -> None:
    with pytest.raises(UserError, match=rf"^task\.pooling={pooling}: BertForSequenceClassification reads the pooler's"):
        export_task(classifiers[pooling], which="auto", out=tmp_path / "hf")
    assert not (tmp_path / "hf").exists()
    assert export_checkpoint(classifiers[pooling], which="auto", out=tmp_path / "encoder").is_dir()


@pytest.mark.parametrize("form", ["hf", "onnx"])
def test_heads_that_tag_words_together_are_refused(form: Any, runtime: Runtime, tmp_path: Path) -> None:
    head = "  head: {bilstm_size: 4, crf: true}"
    run = trained(
        runtime,
        tmp_path,
        task=f"  name: segmentation\n{head}",
        suffix="txt",
        pieces=16,
        settings=("data.max_length=12",),
    )
    with pytest.raises(UserError, match=r"^task\.head has a CRF and a BiLSTM, which tag words together; exported is"):
        export_task(run, which="auto", out=tmp_path / "out", form=form)


def test_several_labels_and_numbers_say_what_they_are(runtime: Runtime, tmp_path: Path) -> None:
    texts = [line.split("\t")[1] for line in sentiment_lines(16, seed=0)]
    lines = ["label\ttext", *(f"{number % 3}\t{text}" for number, text in enumerate(texts))]
    for part in ("train", "dev", "test"):
        (tmp_path / f"{part}.tsv").write_text("\n".join(lines) + "\n")
    for output, problem, names in (
        ("number", "regression", {"0": "label"}),
        ("labels", "multi_label_classification", {"0": "0", "1": "1", "2": "2"}),
    ):
        task = f"  name: classification\n  output: {output}\n  pooling: pooler"
        recipe = write_recipe(tmp_path, task=task, pieces=38)
        run = finetuned_run(recipe, runtime, tmp_path / output, "train.epochs=1")
        out = export_task(run, which="auto", out=tmp_path / f"{output}-hf")
        config = json.loads((out / "config.json").read_text())
        assert (config["problem_type"], config["id2label"]) == (problem, names)


def session(folder: Path) -> Any:
    return pytest.importorskip("onnxruntime").InferenceSession(
        folder / "model.onnx", providers=["CPUExecutionProvider"]
    )


def outputs_of(folder: Path, inputs: dict[str, Any]) -> dict[str, Any]:
    ran = session(folder)
    assert {given.name for given in ran.get_inputs()} == {"input_ids", "attention_mask", "token_type_ids"}
    return dict(zip([output.name for output in ran.get_outputs()], ran.run(None, inputs), strict=True))


@pytest.mark.parametrize("pooling", ["pooler", "mean"])
def test_onnx_gives_a_classifiers_scores_at_any_size(
    classifiers: dict[str, Path], tmp_path: Path, pooling: str
) -> None:
    pytest.importorskip("onnxscript")
    out = export_task(classifiers[pooling], which="auto", out=tmp_path / "onnx", form="onnx")
    predictor = Predictor.load(classifiers[pooling], which="auto")
    for texts, extra in ((TEXTS, 5), (TEXTS[1:2], 0)):
        records, found = examples(predictor, texts)
        outputs = outputs_of(out, padded(found, extra=extra))
        assert outputs.keys() == {"logits"}
        np.testing.assert_allclose(probabilities(outputs["logits"]), expected_scores(predictor, records), atol=1e-4)
    assert json.loads((out / "config.json").read_text())["id2label"] == {"0": "neg", "1": "pos"}
    assert (out / "tokenizer.json").is_file()


def test_onnx_gives_a_taggers_tags(tagger: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("onnxscript")
    assert main(["export", str(tagger), "--format", "onnx", "--out", str(tmp_path / "onnx")]) == 0
    assert capfd.readouterr() == (f"{tmp_path / 'onnx'}\n", "")
    predictor = Predictor.load(tagger, which="auto")
    records, found = examples(predictor, SENTENCES)
    check_tags(predictor, records, found, outputs_of(tmp_path / "onnx", padded(found))["logits"])


def test_onnx_gives_a_pretrained_models_states_and_logits(tiny_run: Path, tmp_path: Path) -> None:
    pytest.importorskip("onnxscript")
    out = export_checkpoint(tiny_run, which="latest", out=tmp_path / "onnx", form="onnx")
    import_to(export_checkpoint(tiny_run, which="latest", out=tmp_path / "hf"), out=tmp_path / "mine")
    from trainer.export import open_exportable

    source = open_exportable(tmp_path / "mine", which="auto")
    model = BertForMaskedLanguageModel(source.model)
    load_weights(model, source.weights, source="x")
    ids = torch.tensor([[2, 9, 8, 7, 6, 3, 0, 0], [2, 9, 11, 3, 0, 0, 0, 0], [2, 7, 7, 8, 9, 10, 11, 3]])
    mask = (ids != 0).long()
    outputs = outputs_of(
        out, {"input_ids": ids.numpy(), "attention_mask": mask.numpy(), "token_type_ids": torch.zeros_like(ids).numpy()}
    )
    assert outputs.keys() == {"last_hidden_state", "logits"}
    with torch.no_grad():
        logits = model.eval().logits(ids, torch.arange(8).expand(3, 8), mask)
    real = mask.bool().numpy()
    np.testing.assert_allclose(outputs["logits"][real], logits.numpy()[real], atol=1e-4)
    assert outputs["last_hidden_state"].shape == (3, 8, source.model.hidden_size)


def test_the_command_tells_encoders_and_tasks_apart(
    classifiers: dict[str, Path], tiny_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["export", str(classifiers["mean"]), "--encoder", "--out", str(tmp_path / "encoder")]) == 0
    architectures = json.loads((tmp_path / "encoder/config.json").read_text())["architectures"]
    assert architectures == ["MegatronBertModel"]
    assert main(["export", str(classifiers["pooler"]), "--out", str(tmp_path / "task")]) == 0
    architectures = json.loads((tmp_path / "task/config.json").read_text())["architectures"]
    assert architectures == ["BertForSequenceClassification"]
    capsys.readouterr()
    assert main(["export", str(tiny_run), "--encoder"]) == 2
    assert capsys.readouterr().err == (
        f"error: {tiny_run} is no fine-tuned run and has no task's head; leave --encoder out\n"
    )


def test_a_missing_package_and_a_taken_folder_are_named(
    tiny_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine/notes.txt").write_text("keep me")
    with pytest.raises(UserError, match="mine exists and is no former export; name another folder or remove it"):
        export_checkpoint(tiny_run, which="auto", out=tmp_path / "mine", form="onnx")
    monkeypatch.setattr("trainer.model.onnx_export.find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"an ONNX export needs the package onnx; pip install 'bertline\[onnx\]'"):
        export_checkpoint(tiny_run, which="auto", out=tmp_path / "new", form="onnx")
