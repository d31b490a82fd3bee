"""A question and its context as windows of the context, each behind the whole question (Devlin et al. 2019, 4.2)."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np

from data_pipeline.hashing import Int64Array
from data_pipeline.tokenizer import Int32Array
from trainer.errors import UserError
from trainer.finetune_config import TaskDataConfig
from trainer.matching_config import QUESTION_FRAME, QuestionAnsweringConfig
from trainer.tasks.examples import Example, Record, too_long
from trainer.tasks.question_records import Answer
from trainer.tasks.text_tokenizer import TextTokenizer


def question_examples(
    records: Sequence[Record],
    tokenizer: TextTokenizer,
    *,
    config: QuestionAnsweringConfig,
    data: TaskDataConfig,
) -> list[Example]:
    """[CLS] question [SEP] window [SEP] for every window of every context; several questions may share one context.

    The head reads [CLS], which stands for "no answer", and the window's tokens; targets are the first and the last
    token of the first answer among these, 0 and 0 where the window does not hold it whole.
    """
    questions = tokenizer.encode([record.inputs[0] for record in records])
    contexts = list(dict.fromkeys(record.inputs[1] for record in records))
    found = dict(zip(contexts, zip(*tokenizer.encode_with_offsets(contexts), strict=True), strict=True))
    return [
        example
        for number, (record, question) in enumerate(zip(records, questions, strict=True))
        for example in _windows(
            number, record, question, *found[record.inputs[1]], tokenizer=tokenizer, config=config, data=data
        )
    ]


def _windows(
    number: int,
    record: Record,
    question: Int32Array,
    context: Int32Array,
    offsets: Int64Array,
    *,
    tokenizer: TextTokenizer,
    config: QuestionAnsweringConfig,
    data: TaskDataConfig,
) -> Iterator[Example]:
    if not len(context):
        raise UserError(f"{record.where}: the vocabulary has no token for anything in the context; mend or remove it")
    left_out = max(0, len(question) - config.max_question_length)
    if data.overlong == "refuse":
        _refuse_overlong(record, len(question), len(context), left_out=left_out, data=data, config=config)
    question = question[: config.max_question_length]
    room = data.max_length - QUESTION_FRAME - len(question)
    answer = answer_tokens(record, offsets) if record.target else None
    cls, sep = (np.array([token], dtype=np.int32) for token in (tokenizer.cls_id, tokenizer.sep_id))
    for window in range(1 + max(0, -(-(len(context) - room) // config.stride))):
        start = window * config.stride
        tokens = context[start : start + room]
        input_ids = np.concatenate([cls, question, sep, tokens, sep])
        types = np.zeros(len(input_ids), dtype=np.int32)
        types[len(question) + 2 :] = 1
        places = np.empty(1, dtype=object)
        places[0] = offsets[start : start + room]
        yield Example(
            number,
            input_ids,
            types,
            rows=np.concatenate([[0], len(question) + 2 + np.arange(len(tokens), dtype=np.int64)]),
            predictions=1,
            targets=None if record.target is None else _targets(answer, start=start, length=len(tokens)),
            cut_tokens=0 if window else left_out,
            known={"offsets": places},
        )


def _refuse_overlong(
    record: Record,
    question: int,
    context: int,
    *,
    left_out: int,
    data: TaskDataConfig,
    config: QuestionAnsweringConfig,
) -> None:
    if left_out:
        raise UserError(
            f"{record.where}: the question has {question} tokens, more than task.max_question_length="
            f"{config.max_question_length}; raise it, shorten the question, or set data.overlong: cut"
        )
    if (length := question + context + QUESTION_FRAME) > data.max_length:
        raise too_long(record.where, length=length, max_length=data.max_length)


def answer_tokens(record: Record, offsets: Int64Array) -> tuple[int, int]:
    """First and last token of the record's first answer, by the characters they cover."""
    answer: Answer = record.target[0]
    covering = np.flatnonzero((offsets[:, 1] > answer.start) & (offsets[:, 0] < answer.start + len(answer.text)))
    if not len(covering):
        raise UserError(
            f"{record.where}: the vocabulary has no token for anything in the answer {answer.text[:60]!r}; mend or "
            "remove the question"
        )
    return int(covering[0]), int(covering[-1])


def _targets(answer: tuple[int, int] | None, *, start: int, length: int) -> Int64Array:
    """Int64 [1, 2]: rows of the answer's ends, [CLS] being row 0."""
    if answer is None or answer[0] < start or answer[1] >= start + length:
        return np.zeros((1, 2), dtype=np.int64)
    return np.array([answer], dtype=np.int64) - start + 1
