"""Records as a person wrote them, and examples as a model reads them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from data_pipeline.hashing import Int64Array
from data_pipeline.tokenizer import Int32Array
from trainer.errors import UserError

# What a model gives for one example or one record, by name; the first axis counts its predictions.
Outputs = dict[str, npt.NDArray[Any]]


@dataclass(frozen=True)
class Record:
    """One line's or sentence's content: a text or a pair, a text and what may go with it, or the words of a sentence.

    where: the place an error can point to. target: the label, labels, number or tags; None when it is to be predicted.
    """

    where: str
    inputs: tuple[str, ...]
    target: Any = None


@dataclass(frozen=True)
class Example:
    """A token sequence, or several that belong together, and which of the tokens something is predicted from.

    record: number of the record it comes from; a long sentence gives several examples, one after the other.
    rows: positions whose hidden state the head reads. predictions: how many it makes from them.
    targets: [predictions, ...]; None when they are to be predicted. cut_tokens: how many of the text were left out.
    outputs: how many outputs the model gives for it, where that is not the number of predictions.
    sequences: tokens of each of its sequences, which lie one behind the other and do not see each other; None for one.
    row_counts: how the rows are parted for the head; None where they are not.
    known: [predictions, ...] by name, what stands among the model's outputs without going through the model.
    """

    record: int
    input_ids: Int32Array
    token_type_ids: Int32Array
    rows: Int64Array
    predictions: int
    targets: npt.NDArray[Any] | None
    cut_tokens: int = 0
    outputs: int | None = None
    sequences: tuple[int, ...] | None = None
    row_counts: tuple[int, ...] | None = None
    known: Outputs = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.input_ids)


@dataclass(frozen=True)
class TaskBatch:
    """Examples side by side in one row of tokens, each sequence a document of its own: nothing is padded.

    input_ids, position_ids, document_ids, token_type_ids: int32 [1, tokens], documents numbered from 1.
    rows: int64, flat positions that the head reads, example after example; row_counts: int64, how many belong
    together, one number for each example or each part of one.
    targets: the examples' targets, joined; absent when they are to be predicted.
    """

    term: str
    input_ids: Int32Array
    position_ids: Int32Array
    document_ids: Int32Array
    token_type_ids: Int32Array
    rows: Int64Array
    row_counts: Int64Array
    targets: npt.NDArray[Any] | None
    predictions: int
    sum_squared_lengths: int

    @property
    def tokens(self) -> int:
        """Real tokens, which is all of them."""
        return self.input_ids.size

    @property
    def predicted_tokens(self) -> int:
        """Tokens that the last layer is computed for."""
        return len(self.rows)

    def model_inputs(self) -> dict[str, npt.NDArray[Any]]:
        """What the model's forward takes, by argument name."""
        names = ("input_ids", "position_ids", "document_ids", "token_type_ids", "rows", "row_counts", "targets")
        return {name: getattr(self, name) for name in names if getattr(self, name) is not None}

    def term_counts(self) -> dict[str, int]:
        """How many predictions the task's loss is a sum over."""
        return {self.term: self.predictions}


def make_batch(examples: Sequence[Example], *, term: str) -> TaskBatch:
    """Lay examples out side by side; `term` is the name of the task's loss. ValueError when there are none."""
    lengths = np.array([length for e in examples for length in e.sequences or (len(e),)], dtype=np.int64)
    starts = np.cumsum(lengths) - lengths
    ends = np.cumsum([len(example) for example in examples])
    targets = [example.targets for example in examples if example.targets is not None]
    return TaskBatch(
        term=term,
        input_ids=np.concatenate([example.input_ids for example in examples])[None],
        position_ids=(np.arange(lengths.sum()) - np.repeat(starts, lengths)).astype(np.int32)[None],
        document_ids=np.repeat(np.arange(1, len(lengths) + 1, dtype=np.int32), lengths)[None],
        token_type_ids=np.concatenate([example.token_type_ids for example in examples])[None],
        rows=np.concatenate([example.rows + end - len(example) for example, end in zip(examples, ends, strict=True)]),
        row_counts=np.array([count for e in examples for count in e.row_counts or (len(e.rows),)], dtype=np.int64),
        targets=np.concatenate(targets) if targets else None,
        predictions=sum(example.predictions for example in examples),
        sum_squared_lengths=int(np.square(lengths).sum()),
    )


def split_outputs(outputs: Outputs, examples: Sequence[Example]) -> list[Outputs]:
    """A batch's outputs, example by example."""
    counts = [example.predictions if example.outputs is None else example.outputs for example in examples]
    ends = np.cumsum(counts)[:-1]
    parts = {name: np.split(values, ends) for name, values in outputs.items()}
    return [{name: parts[name][i] for name in parts} for i in range(len(examples))]


def join_outputs(outputs: Sequence[Outputs], examples: Sequence[Example]) -> list[Outputs]:
    """Outputs by example as outputs by record: the pieces of a long sentence are put together again."""
    of_records: list[list[Outputs]] = []
    previous = None
    for output, example in zip(outputs, examples, strict=True):
        if example.record != previous:
            of_records.append([])
        of_records[-1].append({**output, **example.known})
        previous = example.record
    return [{name: np.concatenate([part[name] for part in parts]) for name in parts[0]} for parts in of_records]


def too_long(where: str, *, length: int, max_length: int, limit: str = "data.max_length") -> UserError:
    """The error for a sequence over the limit where the recipe refuses such."""
    return UserError(
        f"{where}: {length} tokens, longer than {limit}={max_length}; raise it, shorten the text, or set "
        "data.overlong: cut"
    )
