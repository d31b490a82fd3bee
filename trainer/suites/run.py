"""`trainer suite`: every task whose files are at hand is trained, scored on its dev files and answered."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from data_pipeline.atomic import write_atomically
from trainer.checkpoint_files import write_json
from trainer.errors import UserError
from trainer.finetune import finished_scores, in_job, train_one
from trainer.finetune_config import ClassificationConfig, FineTuneConfig
from trainer.runtime import Runtime, on_main
from trainer.suites import clue, glue
from trainer.suites.scores import markdown, published
from trainer.suites.suite_task import SuiteTask, convert
from trainer.task_predict import CHUNK_RECORDS, Predictor
from trainer.tasks.task import Prediction

SUITES = {"glue": glue, "clue": clue}
# What decides a task's best checkpoint, by the first metric that it is published with.
_DECIDING = {"matthews": "matthews", "accuracy": "accuracy", "f1": "accuracy", "pearson": "spearman"}


@dataclass(frozen=True)
class Prepared:
    """A task's files in one form, and the indexes of its test files' lines, by the answers' name."""

    dev: Mapping[str, Path]
    tests: Mapping[str, tuple[Path, Sequence[Any]]]


def run_suite(suite: str, base: FineTuneConfig, *, files: Path, names: Sequence[str] | None) -> bool:
    """Train, score and answer each task of a suite as `base` says; each process of a launcher calls it.

    Everything is written to the run folder NAME-SUITE: a run a task, `predictions/` and the table. A task that is
    finished is not trained again. False when the job was told to stop and has saved.
    """
    chosen, absent = at_hand(suite, files=files, names=names)
    folder = Path(base.runs_dir) / f"{base.name}-{suite}"
    configs = {task.name: task_config(task, base, folder=folder) for task in chosen}

    def body(runtime: Runtime, report: Callable[[str], None]) -> None:
        rows = [
            _run_task(task, suite, configs[task.name], files=files, folder=folder, runtime=runtime, report=report)
            for task in chosen
        ]
        if runtime.is_main:
            text = markdown(rows, absent=absent)
            write_json(folder / f"{suite}.json", {"tasks": rows, "absent": absent})
            write_atomically(folder / f"{suite}.md", text.encode())
            report(text)

    return in_job([folder], deterministic=base.deterministic, body=body)


def at_hand(suite: str, *, files: Path, names: Sequence[str] | None) -> tuple[list[SuiteTask], list[str]]:
    """The suite's tasks, of those named, with files below `files`, and the names of those without.

    UserError for an unknown name, a named task without files, one that lacks some, and where there is none at all.
    """
    tasks = {task.name: task for task in SUITES[suite].TASKS}
    for name in names or ():
        if name not in tasks:
            raise UserError(f"{name!r} is no task of {suite}; its tasks are {', '.join(tasks)}")
    found = {name: task for name, task in tasks.items() if task.folder(files) is not None}
    for name in names or ():
        if name not in found:
            raise UserError(f"{files / name / tasks[name].train}: no such file; put {name}'s published files there")
    if not found:
        first = next(iter(tasks.values()))
        raise UserError(f"{files} holds no task of {suite}: files are looked for as {first.name}/{first.train}")
    chosen = [task for name, task in found.items() if names is None or name in names]
    for task in chosen:
        folder = task.folder(files)
        for name in (*task.dev, *task.tests.values()):
            if folder is not None and not (folder / name).is_file():
                raise UserError(
                    f"{folder / name}: no such file beside {task.train}; put it there, or name --tasks without it"
                )
    return chosen, [name for name in tasks if name not in found]


def task_config(task: SuiteTask, base: FineTuneConfig, *, folder: Path) -> FineTuneConfig:
    """The recipe with a task and its converted files in the place of its own."""
    if not isinstance(base.task, ClassificationConfig):
        raise UserError(f"{base.name} is a recipe for {base.task.name}; a suite needs one for classification")
    if base.seeds is not None:
        raise UserError(f"{base.name} has seeds={base.seeds}, and a suite runs one: --set seeds=null, and seed=N")
    section = ClassificationConfig(
        pair="pair" if task.is_pair else None,
        output="number" if task.is_number else "label",
        pooling=base.task.pooling,
        dropout=base.task.dropout,
    )
    own = _data_folder(task, folder)
    files = {"train": str(own / "train.jsonl"), "validation": str(own / f"{task.dev[0]}.jsonl"), "test": None}
    return base.model_copy(
        update={
            "name": task.name,
            "runs_dir": str(folder),
            "seeds": None,
            "task": section,
            "data": base.data.model_copy(update={**files, "columns": None}),
            "evaluation": base.evaluation.model_copy(update={"metric": _DECIDING[task.metrics[0]]}),
        }
    )


def prepare(task: SuiteTask, *, files: Path, folder: Path, report: Callable[[str], None]) -> Prepared:
    """Convert a task's files, and say what of the labelled ones was left out; one process calls it."""
    source, own = task.folder(files), _data_folder(task, folder)
    assert source is not None  # at_hand has found it
    for name in (task.train, *task.dev):
        target = own / ("train.jsonl" if name == task.train else f"{name}.jsonl")
        _, left_out = convert(task, source / name, target, labelled=True)
        if left_out:
            report(f"{source / name}: {left_out:,} lines without a label, a text or the file's columns were left out")
    tests = {}
    for answers, name in task.tests.items():
        target = own / f"{name}.jsonl"
        tests[answers] = target, convert(task, source / name, target, labelled=False)[0]
    dev = {name: own / f"{name}.jsonl" for name in task.dev}
    return Prepared(dev, tests)


def _data_folder(task: SuiteTask, folder: Path) -> Path:
    return folder / "data" / task.name


def _run_task(
    task: SuiteTask,
    suite: str,
    config: FineTuneConfig,
    *,
    files: Path,
    folder: Path,
    runtime: Runtime,
    report: Callable[[str], None],
) -> dict[str, Any]:
    report(f"{suite}: {task.name}")
    prepared = on_main(runtime, lambda: prepare(task, files=files, folder=folder, report=report))
    if on_main(runtime, lambda: finished_scores(config)) is None:
        train_one(config, runtime=runtime, resume="auto", report=report)
    return on_main(runtime, lambda: answer(task, suite, config, prepared=prepared, folder=folder))


def answer(task: SuiteTask, suite: str, config: FineTuneConfig, *, prepared: Prepared, folder: Path) -> dict[str, Any]:
    """Score the best checkpoint on the dev files and write its answers to the test files; one process calls it."""
    predictor = Predictor.load(config.run_dir, which="auto")
    dev = {}
    for name, path in prepared.dev.items():
        records = predictor.reader.read(path, labelled=True)
        dev[name] = published(task, [record.target for record in records], _predict(predictor, path))
    form = SUITES[suite]
    (folder / "predictions").mkdir(exist_ok=True)
    for name, (path, indexes) in prepared.tests.items():
        values = [_answer(task, prediction) for prediction in _predict(predictor, path)]
        write_atomically(folder / "predictions" / form.answer_file(name), form.answers(indexes, values).encode())
    return {"task": task.name, "seed": config.seed, "dev": dev, "answers": list(prepared.tests)}


def _predict(predictor: Predictor, path: Path) -> list[Prediction]:
    records = predictor.reader.read(path, labelled=False)
    starts = range(0, len(records), CHUNK_RECORDS)
    return [found for start in starts for found in predictor.predict(records[start : start + CHUNK_RECORDS])]


def _answer(task: SuiteTask, prediction: Prediction) -> str:
    if task.bounds is None:
        return str(prediction["label"])
    low, high = task.bounds
    return f"{min(max(prediction['value'], low), high):.3f}"
