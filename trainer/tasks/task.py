"""What the trainer knows of a task, whatever it is."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

from trainer.encoder_config import EncoderConfig
from trainer.tasks.examples import Example, Outputs, Record
from trainer.tasks.model import TaskModel
from trainer.tasks.text_tokenizer import TextTokenizer

Prediction = dict[str, Any]


class Task(Protocol):
    """One task over known labels: features, model, predictions and their score.

    labels: in the order of the model's outputs, empty where a number is predicted. metric_names: the keys of `metrics`;
    `metric` decides the best checkpoint unless the recipe names another; of those in `lower_is_better` less is better.
    """

    term: str
    labels: tuple[str, ...]
    metric: str
    metric_names: tuple[str, ...]
    lower_is_better: frozenset[str]

    def check(self, records: Sequence[Record]) -> None:
        """UserError for the first record whose target this task does not know."""
        ...

    def examples(self, records: Sequence[Record], tokenizer: TextTokenizer) -> list[Example]:
        """Token sequences with targets, in the order of the records; UserError where one is refused."""
        ...

    def create_model(self, config: EncoderConfig) -> TaskModel:
        """Encoder and head, weights still to be set."""
        ...

    def prediction(self, record: Record, outputs: Outputs) -> Prediction:
        """A record's outputs as plain values for JSON."""
        ...

    def metrics(self, records: Sequence[Record], predictions: Sequence[Prediction]) -> Mapping[str, float]:
        """Scores of predictions against the records' targets, and `loss` where that is over several examples."""
        ...


class RecordReader(Protocol):
    """How a task's records are read from files and lines."""

    def read(self, path: Path, *, labelled: bool) -> list[Record]:
        """Every record of a file, with targets if `labelled`; UserError with file and line for a bad one."""
        ...

    def from_line(self, line: str, *, where: str) -> Record:
        """One unlabelled record from a line of text."""
        ...
