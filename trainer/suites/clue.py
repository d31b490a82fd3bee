"""CLUE (Xu et al. 2020): JSON lines, and answers as JSON lines of id and label."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from trainer.errors import UserError
from trainer.suites.suite_task import Content, Lines, SuiteTask, picked, read_json_lines

# Annotators did not agree on a label.
_NO_LABEL = "-"


def _columns(**columns: str) -> Callable[[Mapping[str, Any], str], Content]:
    return lambda values, where: picked(values, columns, where=where)


def _keywords(values: Mapping[str, Any], where: str) -> Content:
    """CSL: do these keywords belong to the abstract?"""
    found = picked(values, {"text": "keyword", "pair": "abst"}, where=where)
    return {**found, "text": " ".join(map(str, found["text"]))}


def _reference(values: Mapping[str, Any], where: str) -> Content:
    """CLUEWSC2020: does the pronoun, set between underscores, stand for the noun?"""
    found = picked(values, {"text": "text", "target": "target"}, where=where)
    try:
        pronoun, at, noun = (found["target"][key] for key in ("span2_text", "span2_index", "span1_text"))
        end = int(at) + len(pronoun)
        return {"text": f"{found['text'][: int(at)]}_{pronoun}_{found['text'][end:]}", "pair": noun}
    except (KeyError, TypeError, ValueError):
        raise UserError(
            f"{where}: target must hold span1_text, span2_text and span2_index; is this the published file?"
        ) from None


def _task(
    name: str, texts: Callable[[Mapping[str, Any], str], Content], *, is_pair: bool, train: str = "train.json"
) -> SuiteTask:
    def read(path: Path, labelled: bool) -> Lines:
        for number, (where, values) in enumerate(read_json_lines(path)):
            content = texts(values, where)
            if not labelled:
                yield where, {**content, "index": values.get("id", number)}
                continue
            label = str(picked(values, {"label": "label"}, where=where)["label"])
            yield where, None if label == _NO_LABEL else {**content, "label": label}

    return SuiteTask(
        name=name,
        folders=(name, f"{name}_public"),
        is_pair=is_pair,
        metrics=("accuracy",),
        read=read,
        train=train,
        dev=("dev.json",),
        tests={name: "test.json"},
    )


_SENTENCES = _columns(text="sentence1", pair="sentence2")
TASKS = (
    _task("afqmc", _SENTENCES, is_pair=True),
    _task("tnews", _columns(text="sentence"), is_pair=False),
    _task("iflytek", _columns(text="sentence"), is_pair=False),
    _task("cmnli", _SENTENCES, is_pair=True),
    _task("ocnli", _SENTENCES, is_pair=True, train="train.50k.json"),
    _task("csl", _keywords, is_pair=True),
    _task("cluewsc2020", _reference, is_pair=True),
)


def answers(indexes: Sequence[object], predictions: Sequence[object]) -> str:
    """A result file's text."""
    pairs = zip(indexes, predictions, strict=True)
    return "".join(json.dumps({"id": index, "label": label}, ensure_ascii=False) + "\n" for index, label in pairs)


def answer_file(name: str) -> str:
    """A result file's name."""
    return f"{name}_predict.json"
