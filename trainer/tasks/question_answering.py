"""Question answering: the piece of a context that answers a question, or that there is none (SQuAD 1.1 and 2.0)."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence

from trainer.encoder_config import EncoderConfig
from trainer.finetune_config import TaskDataConfig
from trainer.matching_config import QuestionAnsweringConfig
from trainer.tasks.examples import Example, Outputs, Record
from trainer.tasks.model import TaskModel
from trainer.tasks.question_examples import question_examples
from trainer.tasks.question_head import QuestionHead
from trainer.tasks.question_scores import answer_metrics
from trainer.tasks.task import Prediction
from trainer.tasks.text_tokenizer import TextTokenizer


class QuestionAnswering:
    """The task; it has no labels."""

    term = "question_answering"
    labels: tuple[str, ...] = ()
    metric = "f1"
    lower_is_better: frozenset[str] = frozenset()

    def __init__(self, config: QuestionAnsweringConfig, data: TaskDataConfig) -> None:
        self._config = config
        self._data = data
        with_none = ("f1_answerable", "accuracy_unanswerable") if config.no_answer else ()
        self.metric_names: tuple[str, ...] = ("f1", "exact_match", *with_none)

    def check(self, records: Sequence[Record]) -> None:
        """Nothing is left to check: the reader has found every answer in its context."""

    def examples(self, records: Sequence[Record], tokenizer: TextTokenizer) -> list[Example]:
        """A token sequence for each window, in the order of the records."""
        return question_examples(records, tokenizer, config=self._config, data=self._data)

    def create_model(self, config: EncoderConfig) -> TaskModel:
        """Encoder and head, weights still to be set."""
        return TaskModel(config, QuestionHead(self._config, hidden_size=config.hidden_size), term=self.term)

    def prediction(self, record: Record, outputs: Outputs) -> Prediction:
        """`answer` with its `score` and the characters [start, end) of the context, and the `n_best` of these.

        A score is the probability among the n best (Devlin et al. 2019's own script), "no answer" being one of them
        with `no_answer`; that has the answer "" and no characters, and `null_margin` is its lead over the best answer
        in logits, which task.null_threshold is held against.
        """
        context = record.inputs[1]
        best = sorted(_by_place(context, outputs).items(), key=lambda item: (-item[1], item[0]))[: self._config.n_best]
        logits = [score for _, score in best]
        found: list[Prediction] = [
            {"answer": context[start:end], "start": start, "end": end} for (start, end), _ in best
        ]
        chosen, margin = 0, None
        if self._config.no_answer:
            # A window that does not hold the answer says so; only where every window does is there none.
            null = float(outputs["null"].min())
            margin = null - logits[0]
            chosen = len(found) if margin > self._config.null_threshold else 0
            found.append({"answer": "", "start": None, "end": None})
            logits.append(null)
        total = sum(math.exp(score - max(logits)) for score in logits)
        for answer, score in zip(found, logits, strict=True):
            answer["score"] = math.exp(score - max(logits)) / total
        of_none = {} if margin is None else {"null_margin": margin}
        return {**found[chosen], **of_none, "n_best": sorted(found, key=lambda answer: -answer["score"])}

    def metrics(self, records: Sequence[Record], predictions: Sequence[Prediction]) -> Mapping[str, float]:
        """Exact match and F1 against the best of each question's answers."""
        answers = [[answer.text for answer in record.target] for record in records]
        found = [prediction["answer"] for prediction in predictions]
        return answer_metrics(found, answers, no_answer=self._config.no_answer)


def _by_place(context: str, outputs: Outputs) -> dict[tuple[int, int], float]:
    """The best score that any window gives to each piece of the context, by its characters without blanks around."""
    found: dict[tuple[int, int], float] = {}
    for start, end, score in _pieces(outputs):
        text = context[start:end]
        start += len(text) - len(text.lstrip())
        place = (start, start + len(text.strip()))
        found[place] = max(score, found.get(place, -math.inf))
    return found


def _pieces(outputs: Outputs) -> Iterator[tuple[int, int, float]]:
    for spans, scores, offsets in zip(outputs["spans"], outputs["scores"], outputs["offsets"], strict=True):
        for (first, last), score in zip(spans.tolist(), scores.tolist(), strict=True):
            if score > -math.inf:
                yield int(offsets[first, 0]), int(offsets[last, 1]), score
