"""A fine-tuned run at work in one process: predictions for new records, scores for labelled ones."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import IO, Any

import torch

from trainer.errors import UserError
from trainer.finetune_config import FineTuneConfig
from trainer.task_evaluate import PredictStep, TaskEvaluation, plain_predict_step, predict_examples
from trainer.task_model import load_trained
from trainer.tasks.choose import reader_for
from trainer.tasks.examples import Example, Outputs, Record, join_outputs
from trainer.tasks.tables import suffix_of
from trainer.tasks.task import Prediction, RecordReader, Task
from trainer.tasks.text_lines import decode_line, numbered_lines
from trainer.tasks.text_tokenizer import TextTokenizer

# So many records are sorted by length together; their predictions are written before the next are read.
CHUNK_RECORDS = 4096


@dataclass(frozen=True)
class Predictor:
    """A fine-tuned run, loaded for this process alone, in fp32."""

    config: FineTuneConfig
    checkpoint: Path
    task: Task
    reader: RecordReader
    tokenizer: TextTokenizer
    step: PredictStep

    @classmethod
    def load(cls, run_dir: Path, *, which: str) -> Predictor:
        """Read a run's checkpoint; UserError where `run_dir` is no fine-tuned run."""
        trained = load_trained(run_dir, which=which)
        device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        step = plain_predict_step(trained.model.to(device), device=device)
        reader = reader_for(trained.config)
        return cls(trained.config, trained.checkpoint, trained.task, reader, trained.tokenizer, step)

    def predict(self, records: Sequence[Record]) -> list[Prediction]:
        """A prediction for each record, in their order; batched by length."""
        examples = self.task.examples(records, self.tokenizer)
        batch_tokens = self.config.evaluation.batch_tokens
        outputs, _ = predict_examples(examples, self.step, term=self.task.term, batch_tokens=batch_tokens)
        return self.predictions(records, examples=examples, outputs=outputs)

    def predictions(
        self, records: Sequence[Record], *, examples: Sequence[Example], outputs: Sequence[Outputs]
    ) -> list[Prediction]:
        """The records' predictions from the outputs of their examples."""
        joined = join_outputs(outputs, examples)
        return [self.task.prediction(record, of_record) for record, of_record in zip(records, joined, strict=True)]

    def score(self, path: Path) -> dict[str, float]:
        """Loss and the task's metrics on a labelled file."""
        result = TaskEvaluation(
            self.task,
            self.reader.read(path, labelled=True),
            self.tokenizer,
            metric=self.config.evaluation.metric,
            batch_tokens=self.config.evaluation.batch_tokens,
        ).run(self.step)
        return result.scores()


def score_run(run_dir: Path, *, which: str, file: Path | None = None) -> dict[str, Any]:
    """The checkpoint, what chose it, and its scores on the recipe's validation and test files, or on `file` alone."""
    predictor = Predictor.load(run_dir, which=which)
    data = predictor.config.data
    named = {"validation": data.validation, "test": data.test} if file is None else {str(file): str(file)}
    parts = {name: predictor.score(Path(path)) for name, path in named.items() if path is not None}
    metric = predictor.config.evaluation.metric or predictor.task.metric
    return {
        "checkpoint": str(predictor.checkpoint),
        "metric": metric,
        "lower_is_better": metric in predictor.task.lower_is_better,
        "parts": parts,
    }


def predict_to(predictor: Predictor, *, source: str, out: IO[str]) -> int:
    """One JSON line for each record of a file, or each line of standard input (`-`); gives their number."""
    written = 0
    records = iter(read_unlabelled(predictor.reader, source))
    while chunk := list(islice(records, CHUNK_RECORDS)):
        for prediction in predictor.predict(chunk):
            out.write(json.dumps(prediction, ensure_ascii=False) + "\n")
        out.flush()
        written += len(chunk)
    return written


def read_unlabelled(reader: RecordReader, source: str) -> Iterable[Record]:
    """The records of a table, of a .conll file, or of the lines of a .txt file or standard input."""
    if source != "-" and suffix_of(Path(source)) != ".txt":
        return reader.read(Path(source), labelled=False)
    return _of_lines(reader, source)


def _of_lines(reader: RecordReader, source: str) -> Iterator[Record]:
    lines: Iterator[tuple[int, str]]
    if source == "-":
        lines = (
            (number, decode_line(line, where=f"standard input:{number}"))
            for number, line in enumerate(sys.stdin.buffer, start=1)
        )
    else:
        lines = numbered_lines(Path(source))
    name = "standard input" if source == "-" else source
    for number, line in lines:
        yield reader.from_line(line, where=f"{name}:{number}")


def write_predictions(run_dir: Path, *, which: str, source: str, out: Path | None) -> int:
    """Predict `source` to the file `out`, whole or not at all, or to standard output; gives the number of lines."""
    predictor = Predictor.load(run_dir, which=which)
    if out is None:
        return predict_to(predictor, source=source, out=sys.stdout)
    if out.is_dir():
        raise UserError(f"{out} is a folder; name a file")
    draft = out.with_name(f".{out.name}.partial")
    try:
        with draft.open("w", encoding="utf-8") as file:
            written = predict_to(predictor, source=source, out=file)
        draft.replace(out)
    finally:
        draft.unlink(missing_ok=True)
    return written
