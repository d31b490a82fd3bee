"""One text or a pair as BERT reads it: [CLS] text [SEP], or [CLS] text [SEP] second [SEP] (Devlin et al. 2019, 3.1)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from data_pipeline.hashing import Int64Array
from data_pipeline.tokenizer import Int32Array
from trainer.finetune_config import TaskDataConfig
from trainer.tasks.examples import too_long
from trainer.tasks.text_tokenizer import TextTokenizer


class Framed(NamedTuple):
    """Int32 [tokens] each, type 1 from the second text on, and how many tokens were left out."""

    input_ids: Int32Array
    token_type_ids: Int32Array
    cut_tokens: int


def frame(parts: Sequence[Int32Array], *, tokenizer: TextTokenizer, data: TaskDataConfig, where: str) -> Framed:
    """A text or a pair of them in its frame, cut to the recipe's length; UserError where the recipe refuses such."""
    around = 1 + len(parts)
    length = sum(map(len, parts)) + around
    if length > data.max_length:
        if data.overlong == "refuse":
            raise too_long(where, length=length, max_length=data.max_length)
        parts = cut(parts, data.max_length - around)
    pieces = [np.array([tokenizer.cls_id], dtype=np.int32)]
    for part in parts:
        pieces += [part, np.array([tokenizer.sep_id], dtype=np.int32)]
    input_ids = np.concatenate(pieces)
    types = np.zeros(len(input_ids), dtype=np.int32)
    types[len(parts[0]) + 2 :] = 1
    return Framed(input_ids, types, length - len(input_ids))


def cut(parts: Sequence[Int32Array], room: int) -> list[Int32Array]:
    """The beginnings of a text or a pair that fit in `room` tokens; the longer text is cut first."""
    lengths: Int64Array = np.array([len(part) for part in parts], dtype=np.int64)
    if len(parts) == 1:
        return [parts[0][:room]]
    shorter = min(int(lengths.min()), room // 2)
    kept = [shorter, room - shorter] if lengths[0] <= lengths[1] else [room - shorter, shorter]
    return [part[:length] for part, length in zip(parts, kept, strict=True)]
