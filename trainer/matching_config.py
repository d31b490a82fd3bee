"""The task sections of a recipe that hold one text against others: answers in a context."""

from __future__ import annotations

from typing import Literal

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
