"""The task sections of a recipe that hold texts against each other: answers, choices, rankings, embeddings."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from trainer.strict_model import Dropout, PositiveInt, StrictModel

# [CLS] question [SEP] context [SEP]
QUESTION_FRAME = 3


class QuestionAnsweringConfig(StrictModel):
    """A question to the piece of its context that answers it (Rajpurkar et al. 2016; without answers, 2018).

    question, context, answers: columns of a table; a SQuAD .json file has its own names.
    no_answer: a question may have no answer in its context. None is predicted where that scores over the best answer
    by more than `null_threshold`, in logits.
    stride: context tokens from the start of one window to that of the next.
    max_question_length, max_answer_length: in tokens; a longer question is cut at its end, or refused (data.overlong).
    n_best: answers in a prediction.
    """

    name: Literal["question_answering"] = "question_answering"
    question: str = "question"
    context: str = "context"
    answers: str = "answers"
    no_answer: bool = False
    null_threshold: float = 0.0
    stride: PositiveInt = 64
    max_question_length: PositiveInt = 40
    max_answer_length: PositiveInt = 30
    n_best: PositiveInt = 5
    dropout: Dropout = 0.1

    def check_length(self, max_length: int) -> None:
        """ValueError where windows of `max_length` tokens, `stride` apart, would leave tokens out between them."""
        room = max_length - self.max_question_length - QUESTION_FRAME
        if self.stride > room:
            raise ValueError(
                f"data.max_length={max_length} less task.max_question_length={self.max_question_length} and "
                f"{QUESTION_FRAME} leaves room for {room} context tokens, and task.stride={self.stride} steps over "
                "some; raise the first or lower the others"
            )


class MultipleChoiceConfig(StrictModel):
    """Which of several options goes with a question (Zellers et al. 2018).

    options: a column that holds a list, or the columns that hold one option each. label: the column with the number of
    the right one, counted from 0.
    """

    name: Literal["multiple_choice"] = "multiple_choice"
    question: str = "question"
    options: str | Annotated[list[str], Field(min_length=2)] = "options"
    label: str = "label"
    dropout: Dropout = 0.1


class RankingConfig(StrictModel):
    """Documents in the order in which they fit a query, each read together with it (Nogueira and Cho 2019).

    query, document: columns of the labelled files; each record is a query and the document that belongs to it.
    documents: the column of a file for `predict` that holds the list of documents to be ranked.
    negatives: so many documents of other records stand beside the right one in a training row, drawn anew each epoch.
    candidates: so many documents, the right one among them, a labelled query is scored on, always the same.
    recall_at: for which lengths of the list's head the share of queries is told whose document is in it.
    """

    name: Literal["ranking"] = "ranking"
    query: str = "query"
    document: str = "document"
    documents: str = "documents"
    negatives: PositiveInt = 4
    candidates: Annotated[int, Field(ge=2)] = 20
    recall_at: Annotated[list[PositiveInt], Field(min_length=1)] = Field(default_factory=lambda: [1, 5])
    dropout: Dropout = 0.1

    @model_validator(mode="after")
    def _recall_is_within_the_candidates(self) -> RankingConfig:
        if max(self.recall_at) >= self.candidates:
            raise ValueError(
                f"task.recall_at={max(self.recall_at)} is always 1 among task.candidates={self.candidates}; lower the "
                "first or raise the second"
            )
        return self


class SentenceEmbeddingConfig(StrictModel):
    """A vector for each text, learnt from pairs of texts that belong together (Reimers and Gurevych 2019).

    first, second: columns of the labelled files. score: the column of validation and test file that says how alike a
    pair is, which is then scored by correlation, else by how well the first text finds the second.
    text: the column of a file for `predict`.
    group_size: the second texts of so many rows, one after the other in the order of training, are each other's
    negatives, in whatever layout; it divides both batch sizes. temperature: what cosines are divided by.
    """

    name: Literal["sentence_embedding"] = "sentence_embedding"
    first: str = "first"
    second: str = "second"
    score: str | None = None
    text: str = "text"
    group_size: Annotated[int, Field(ge=2)] = 16
    temperature: Annotated[float, Field(gt=0.0)] = 0.05

    def check_batches(self, *, global_batch_size: int, micro_batch_size: int) -> None:
        """ValueError where a group would be cut by a batch's end."""
        for name, size in (("global_batch_size", global_batch_size), ("micro_batch_size", micro_batch_size)):
            if size % self.group_size:
                raise ValueError(
                    f"train.{name}={size} is not divisible by task.group_size={self.group_size}, whose rows stay "
                    f"together; use {-(-size // self.group_size) * self.group_size}"
                )
