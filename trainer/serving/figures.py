"""What a server counts, in Prometheus' text form."""

from __future__ import annotations

from typing import Any

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

from trainer.task_evaluate import PredictStep
from trainer.tasks.model import Predicted

_POWERS_OF_TWO = tuple(float(1 << power) for power in range(16))


class Figures:
    """Counters of one server; each server has a registry of its own."""

    def __init__(self) -> None:
        self._registry = CollectorRegistry()
        self._requests = Counter(
            "bertline_requests", "Requests to /predict by HTTP status.", ["status"], registry=self._registry
        )
        self._seconds = Histogram(
            "bertline_request_seconds", "Time to answer a request to /predict.", registry=self._registry
        )
        self._sequences = self._sizes("bertline_batch_sequences", "Sequences in a forward pass.")
        self._tokens = self._sizes("bertline_batch_tokens", "Tokens in a forward pass.")
        self.waiting = Gauge("bertline_waiting_texts", "Texts not yet answered.", registry=self._registry)

    def _sizes(self, name: str, documentation: str) -> Histogram:
        return Histogram(name, documentation, buckets=_POWERS_OF_TWO, registry=self._registry)

    def note_request(self, *, status: int, seconds: float) -> None:
        """Count a request that was answered."""
        self._requests.labels(str(status)).inc()
        self._seconds.observe(seconds)

    def noting_batches(self, step: PredictStep) -> PredictStep:
        """The same step, whose batches are counted."""

        def noted(batch: Any) -> Predicted:
            self._sequences.observe(len(batch.row_counts))
            self._tokens.observe(batch.tokens)
            return step(batch)

        return noted

    def text(self) -> bytes:
        """All figures as `/metrics` gives them."""
        return generate_latest(self._registry)
