"""GLUE (Wang et al. 2019): tab-separated files, and answers as tables of index and prediction."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from trainer.suites.suite_task import Lines, Metric, SuiteTask, picked, read_tsv

_COLA_COLUMNS = ("source", "label", "mark", "sentence")


def _task(
    name: str,
    text: str,
    pair: str | None,
    *,
    label: str = "label",
    index: str = "index",
    metrics: Sequence[Metric] = ("accuracy",),
    dev: Sequence[str] = ("dev.tsv",),
    tests: Mapping[str, str] | None = None,
    columns: Sequence[str] | None = None,
    bounds: tuple[float, float] | None = None,
) -> SuiteTask:
    texts = {"text": text} if pair is None else {"text": text, "pair": pair}

    def read(path: Path, labelled: bool) -> Lines:
        wanted = texts | ({"label": label} if labelled else {"index": index})
        for where, values in read_tsv(path, columns=columns if labelled else None):
            yield where, None if values is None else picked(values, wanted, where=where)

    return SuiteTask(
        name=name,
        folders=(name,),
        is_pair=pair is not None,
        metrics=metrics,
        read=read,
        train="train.tsv",
        dev=dev,
        tests=tests or {name: "test.tsv"},
        bounds=bounds,
    )


TASKS = (
    _task("CoLA", "sentence", None, metrics=("matthews",), columns=_COLA_COLUMNS),
    _task("SST-2", "sentence", None),
    _task("MRPC", "#1 String", "#2 String", label="Quality", metrics=("f1", "accuracy")),
    _task("STS-B", "sentence1", "sentence2", label="score", metrics=("pearson", "spearman"), bounds=(0.0, 5.0)),
    _task("QQP", "question1", "question2", label="is_duplicate", index="id", metrics=("f1", "accuracy")),
    _task(
        "MNLI",
        "sentence1",
        "sentence2",
        label="gold_label",
        dev=("dev_matched.tsv", "dev_mismatched.tsv"),
        tests={"MNLI-m": "test_matched.tsv", "MNLI-mm": "test_mismatched.tsv"},
    ),
    _task("QNLI", "question", "sentence"),
    _task("RTE", "sentence1", "sentence2"),
    _task("WNLI", "sentence1", "sentence2"),
)


def answers(indexes: Sequence[object], predictions: Sequence[object]) -> str:
    """A result file's text."""
    lines = [f"{index}\t{prediction}" for index, prediction in zip(indexes, predictions, strict=True)]
    return "\n".join(["index\tprediction", *lines]) + "\n"


def answer_file(name: str) -> str:
    """A result file's name."""
    return f"{name}.tsv"
