"""Dynamic batching: requests that wait at the same time go through the model together."""

from __future__ import annotations

import threading
import time
from collections.abc import Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from queue import Empty, SimpleQueue

from trainer.task_evaluate import PredictStep, predict_examples
from trainer.tasks.examples import Example, Outputs


@dataclass(frozen=True)
class Waiting:
    """A request's examples, and where their outputs go."""

    examples: Sequence[Example]
    answer: Future[list[Outputs]] = field(default_factory=Future)


class Batcher:
    """One thread that owns the model.

    It takes the first request, and then what comes within `max_wait_s` or waits already, until `max_batch_tokens` are
    there. What was gathered is sorted by length and cut into batches of `max_batch_tokens` at most. Examples lie side
    by side and see only themselves, so that no answer depends on its neighbours but for rounding.
    """

    def __init__(self, step: PredictStep, *, term: str, max_batch_tokens: int, max_wait_s: float) -> None:
        self._step = step
        self._term = term
        self._max_batch_tokens = max_batch_tokens
        self._max_wait_s = max_wait_s
        self._queue: SimpleQueue[Waiting | None] = SimpleQueue()
        self._thread = threading.Thread(target=self._work, name="batcher", daemon=True)
        self._thread.start()

    def submit(self, examples: Sequence[Example]) -> Future[list[Outputs]]:
        """The outputs of some examples, in their order, once they are there; it does not wait."""
        waiting = Waiting(examples)
        self._queue.put(waiting)
        return waiting.answer

    def close(self) -> None:
        """Answer what was submitted, then end the thread; waits for it."""
        self._queue.put(None)
        self._thread.join()

    def _work(self) -> None:
        is_open = True
        while is_open:
            gathered, is_open = self._gather()
            # A request whose client has left is not computed.
            live = [waiting for waiting in gathered if waiting.answer.set_running_or_notify_cancel()]
            if live:
                self._answer(live)

    def _gather(self) -> tuple[list[Waiting], bool]:
        """The requests of one turn, and whether there may be more after them."""
        gathered: list[Waiting] = []
        tokens, deadline_s = 0, 0.0
        while tokens < self._max_batch_tokens:
            try:
                wait_s = max(0.0, deadline_s - time.monotonic()) if gathered else None
                waiting = self._queue.get(timeout=wait_s)
            except Empty:
                break
            if waiting is None:
                return gathered, False
            if not gathered:
                deadline_s = time.monotonic() + self._max_wait_s
            gathered.append(waiting)
            tokens += sum(map(len, waiting.examples))
        return gathered, True

    def _answer(self, live: Sequence[Waiting]) -> None:
        examples = [example for waiting in live for example in waiting.examples]
        try:
            outputs, _ = predict_examples(examples, self._step, term=self._term, batch_tokens=self._max_batch_tokens)
        except Exception as error:
            for waiting in live:
                waiting.answer.set_exception(error)
            return
        end = 0
        for waiting in live:
            start, end = end, end + len(waiting.examples)
            waiting.answer.set_result(outputs[start:end])
