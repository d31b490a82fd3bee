"""Random insertion, swap and deletion in training rows (Wei and Zou 2019), drawn anew in every epoch.

What is disturbed are the texts between [CLS] and [SEP], each by itself and never beyond the length it has. The units
are tokens; of tagged sentences words, or whole entities and words of a segmentation, which take their tags along.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Literal

import numpy as np
import numpy.typing as npt

from data_pipeline.augmentation import Augmentation, augment_pieces
from data_pipeline.hashing import Int64Array
from data_pipeline.packing import Pieces
from trainer.augmentation_config import TaskAugmentationConfig
from trainer.tasks.examples import Example
from trainer.tasks.rows import TrainingRows
from trainer.tasks.text_tokenizer import TextTokenizer

BoolArray = npt.NDArray[np.bool_]


def augmented(
    rows: TrainingRows,
    *,
    rates: TaskAugmentationConfig,
    seed: int,
    tokenizer: TextTokenizer,
    first_text_only: bool = False,
    starts_unit: BoolArray | None = None,
) -> TrainingRows:
    """The same rows disturbed, each by (seed, epoch, its number), whatever the layout.

    first_text_only: the second text of a pair stays as it is. starts_unit: of rows with a target for each word, bool
    [labels], whether a word of this label begins a unit.
    """
    level: Literal["token", "sentence"] = "token" if starts_unit is None else "sentence"
    rule = Augmentation(level=level, insert=rates.insert, swap=rates.swap, delete=rates.delete)

    def draw(number: int, epoch: int) -> Example:
        example = rows.example(number, epoch=epoch)
        is_text = ~np.isin(example.input_ids, (tokenizer.cls_id, tokenizer.sep_id))
        if first_text_only:
            is_text &= example.token_type_ids == 0
        borders = None
        if starts_unit is not None and example.targets is not None:
            borders = example.rows[starts_unit[example.targets]]
        return disturb(example, is_text=is_text, borders=borders, rule=rule, key=(seed, epoch, number))

    return replace(rows, draw=draw, drawn_by=f"{rows.drawn_by} {rule}")


def disturb(
    example: Example, *, is_text: BoolArray, borders: Int64Array | None, rule: Augmentation, key: tuple[int, ...]
) -> Example:
    """An example whose texts, the runs of `is_text` tokens, are disturbed by `rule`.

    borders: tokens that begin a unit; each token is one where it is None. Rows follow their tokens, and with borders so
    do the targets, of which there is one for each row.
    """
    changes = np.flatnonzero(np.diff(is_text.astype(np.int8), prepend=0, append=0))
    starts, ends = changes[::2], changes[1::2]
    if not len(starts):
        return example
    old = np.flatnonzero(is_text)
    lengths = ends - starts
    pieces = Pieces(np.arange(len(starts)), np.cumsum(lengths) - lengths, lengths)
    places = np.searchsorted(old, borders) if borders is not None else np.zeros(0, dtype=np.int64)
    disturbed, source = augment_pieces(pieces, sentence_borders=places, rule=rule, key=key)
    texts = np.split(old[source], disturbed.start[1:])
    return _rebuilt(example, starts=starts, ends=ends, texts=texts, by_row=borders is not None)


def _rebuilt(
    example: Example, *, starts: Int64Array, ends: Int64Array, texts: Sequence[Int64Array], by_row: bool
) -> Example:
    """The example with `texts`, its own tokens by place, where its tokens [starts, ends) were."""
    source: list[Int64Array] = []
    home: list[Int64Array] = []
    before = 0
    for start, end, text in zip(starts, ends, texts, strict=True):
        frame = np.arange(before, start)
        source += [frame, text]
        home += [frame, np.full(len(text), start)]  # an inserted token may come from another text
        before = end
    rest = np.arange(before, len(example))
    tokens, places = np.concatenate([*source, rest]), np.concatenate([*home, rest])
    row_of_token = np.full(len(example), -1, dtype=np.int64)
    row_of_token[example.rows] = np.arange(len(example.rows))
    rows = np.flatnonzero(row_of_token[tokens] >= 0)
    targets = example.targets
    if by_row and targets is not None:
        targets = targets[row_of_token[tokens[rows]]]
    return replace(
        example,
        input_ids=example.input_ids[tokens],
        token_type_ids=example.token_type_ids[places],
        rows=rows,
        predictions=len(rows) if by_row else example.predictions,
        targets=targets,
        sequences=_counted(example.sequences, places),
        row_counts=_counted(example.row_counts, places[rows]),
    )


def _counted(sizes: tuple[int, ...] | None, places: Int64Array) -> tuple[int, ...] | None:
    """How many of `places` lie in each of the parts that had these sizes."""
    if sizes is None:
        return None
    part = np.searchsorted(np.cumsum(sizes), places, side="right")
    return tuple(np.bincount(part, minlength=len(sizes)).tolist())
