"""Words with tags as token sequences: a word is predicted from its first piece, a long sentence is split."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from data_pipeline.tokenizer import Int32Array
from trainer.errors import UserError
from trainer.finetune_config import TaskDataConfig
from trainer.tasks.examples import Example, Record, too_long
from trainer.tasks.text_tokenizer import TextTokenizer

_FRAME = 2


def tag_examples(
    records: Sequence[Record], tokenizer: TextTokenizer, *, numbers: Mapping[str, int], data: TaskDataConfig
) -> list[Example]:
    """[CLS] pieces of the words [SEP] for each sentence, in as many examples as its length needs.

    `numbers` gives each tag its class. UserError where one word alone is longer than a sequence.
    """
    distinct = sorted({word for record in records for word in record.inputs})
    pieces = dict(zip(distinct, tokenizer.encode_words(distinct), strict=True))
    room = data.max_length - _FRAME
    examples: list[Example] = []
    for number, record in enumerate(records):
        words = [pieces[word] for word in record.inputs]
        length = sum(map(len, words)) + _FRAME
        if length > data.max_length and data.overlong == "refuse":
            raise too_long(record.where, length=length, max_length=data.max_length)
        tags = None if record.target is None else [numbers[tag] for tag in record.target]
        for start, end in split_words([len(word) for word in words], room=room, where=record.where):
            targets = None if tags is None else tags[start:end]
            examples.append(_example(number, words[start:end], targets, tokenizer))
    return examples


def split_words(lengths: Sequence[int], *, room: int, where: str) -> list[tuple[int, int]]:
    """Ranges of words, one after the other, each as long as `room` pieces allow."""
    if max(lengths) > room:
        raise UserError(
            f"{where}: a word of {max(lengths)} pieces is longer than data.max_length={room + _FRAME} allows; raise it"
        )
    ranges, start, used = [], 0, 0
    for word, length in enumerate(lengths):
        if used + length > room:
            ranges.append((start, word))
            start, used = word, 0
        used += length
    return [*ranges, (start, len(lengths))]


def _example(
    number: int, words: Sequence[Int32Array], targets: Sequence[int] | None, tokenizer: TextTokenizer
) -> Example:
    frame = (np.array([tokenizer.cls_id], dtype=np.int32), np.array([tokenizer.sep_id], dtype=np.int32))
    input_ids = np.concatenate([frame[0], *words, frame[1]])
    lengths = np.array([len(word) for word in words], dtype=np.int64)
    return Example(
        record=number,
        input_ids=input_ids,
        token_type_ids=np.zeros(len(input_ids), dtype=np.int32),
        rows=1 + np.cumsum(lengths) - lengths,
        predictions=len(words),
        targets=None if targets is None else np.array(targets, dtype=np.int64),
    )
