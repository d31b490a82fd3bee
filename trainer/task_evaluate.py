"""Predicting a set of records on all ranks, and the score of what came out."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy.typing as npt
import torch
import torch.distributed as dist
from torch import Tensor

from trainer.errors import UserError
from trainer.tasks.examples import Example, Outputs, Record, join_outputs, make_batch, split_outputs
from trainer.tasks.model import Predicted, TaskModel
from trainer.tasks.task import Task
from trainer.tasks.text_tokenizer import TextTokenizer

PredictStep = Callable[[Any], Predicted]


@dataclass(frozen=True)
class TaskResult:
    """A scored set of records: `values` by the task's metric names, `decisive` the one that chooses checkpoints.

    There is no loss where what is scored is of another kind than what is trained.
    """

    loss: float | None
    values: dict[str, float]
    decisive: str
    lower_is_better: bool

    @property
    def score(self) -> float:
        """What decides the best checkpoint; less is better."""
        return self.values[self.decisive] if self.lower_is_better else -self.values[self.decisive]

    def scores(self) -> dict[str, float]:
        """The loss, if there is one, and the values."""
        return {**({} if self.loss is None else {"loss": self.loss}), **self.values}

    def metrics(self) -> dict[str, float]:
        """By metric key."""
        return {f"validation/{name}": value for name, value in self.scores().items()}

    def summary(self) -> str:
        """The result for a person, on one line."""
        loss = "" if self.loss is None else f"loss {self.loss:.4f}, "
        return f"validation {loss}{self.decisive} {self.values[self.decisive]:.4f}"


class TaskEvaluation:
    """Labelled records that are scored again and again."""

    def __init__(
        self,
        task: Task,
        records: Sequence[Record],
        tokenizer: TextTokenizer,
        *,
        metric: str | None,
        batch_tokens: int,
        dp_rank: int = 0,
        dp_world_size: int = 1,
    ) -> None:
        task.check(records)
        self._task = task
        self._records = records
        self.examples = task.examples(records, tokenizer)
        self._metric = metric or task.metric
        if self._metric not in task.metric_names:
            raise UserError(
                f"evaluation.metric={self._metric!r} is none of the task's metrics, which are "
                f"{', '.join(task.metric_names)}"
            )
        self._batch_tokens = batch_tokens
        self._place = {"dp_rank": dp_rank, "dp_world_size": dp_world_size}

    def run(self, predict_step: PredictStep, *, poll: Callable[[], None] | None = None) -> TaskResult:
        """Score the present weights; collective when a process group exists. `poll` is called after each batch."""
        outputs, loss = predict_examples(
            self.examples,
            predict_step,
            term=self._task.term,
            batch_tokens=self._batch_tokens,
            poll=poll,
            **self._place,
        )
        predictions = [
            self._task.prediction(record, of_record)
            for record, of_record in zip(self._records, join_outputs(outputs, self.examples), strict=True)
        ]
        values = dict(self._task.metrics(self._records, predictions))
        return TaskResult(values.pop("loss", loss), values, self._metric, self._metric in self._task.lower_is_better)


def predict_examples(
    examples: Sequence[Example],
    predict_step: PredictStep,
    *,
    term: str,
    batch_tokens: int,
    dp_rank: int = 0,
    dp_world_size: int = 1,
    poll: Callable[[], None] | None = None,
) -> tuple[list[Outputs], float | None]:
    """Every example's outputs in the order of the examples, and the mean loss (None without targets).

    Examples are batched by length and the batches dealt to the ranks; collective when there are several.
    """
    batches = length_batches([len(example) for example in examples], batch_tokens=batch_tokens)
    own = batches[dp_rank::dp_world_size]
    found: list[tuple[list[int], list[Outputs]]] = []
    loss = 0.0
    # All ranks take as many forward passes, because ZeRO-3 gathers weights in each; a surplus one is not counted.
    for turn in range(-(-len(batches) // dp_world_size)):
        numbers = own[turn] if turn < len(own) else batches[0]
        members = [examples[number] for number in numbers]
        terms, outputs = predict_step(make_batch(members, term=term))
        if turn < len(own):
            loss += float(terms[term].loss) if terms else 0.0
            found.append(
                (numbers, split_outputs({name: _on_host(values) for name, values in outputs.items()}, members))
            )
        if poll is not None:
            poll()
    gathered: list[Any] = [None] * dp_world_size
    if dp_world_size > 1:
        dist.all_gather_object(gathered, (found, loss))
    else:
        gathered = [(found, loss)]
    by_number = {
        number: output for of_rank, _ in gathered for batch in of_rank for number, output in zip(*batch, strict=True)
    }
    in_order = [by_number[number] for number in range(len(examples))]
    if any(example.targets is None for example in examples):
        return in_order, None
    return in_order, sum(part for _, part in gathered) / sum(example.predictions for example in examples)


def _on_host(values: Tensor) -> npt.NDArray[Any]:
    array: npt.NDArray[Any] = (values.float() if values.is_floating_point() else values).cpu().numpy()
    return array


def length_batches(lengths: Sequence[int], *, batch_tokens: int) -> list[list[int]]:
    """Places of sequences, the longest first, in batches of `batch_tokens` tokens at most, one sequence at least."""
    batches: list[list[int]] = []
    used = batch_tokens
    for place in sorted(range(len(lengths)), key=lambda place: (-lengths[place], place)):
        if used + lengths[place] > batch_tokens:
            batches.append([])
            used = 0
        batches[-1].append(place)
        used += lengths[place]
    return batches


def plain_predict_step(model: TaskModel, *, device: torch.device) -> PredictStep:
    """A predict step on the plain module, for one process without an engine."""
    model.eval()

    def step(batch: Any) -> Predicted:
        inputs = {name: torch.from_numpy(array).to(device) for name, array in batch.model_inputs().items()}
        with torch.inference_mode():
            predicted: Predicted = model(**inputs, predict=True)
        return predicted

    return step
