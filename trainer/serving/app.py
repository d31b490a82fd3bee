"""The service: `/predict`, `/health` and `/metrics` over one loaded run."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

from fastapi import FastAPI, Request, Response
from prometheus_client import CONTENT_TYPE_LATEST
from starlette.requests import ClientDisconnect

from trainer.errors import UserError
from trainer.serving.batcher import Batcher
from trainer.serving.figures import Figures
from trainer.serving.requests import RequestError, read_records
from trainer.task_predict import Predictor
from trainer.tasks.task import Prediction


@dataclass(frozen=True)
class Limits:
    """What a server takes on.

    max_batch_tokens: in one forward pass; a longer sequence goes alone. max_wait_ms: how long the first request of a
    batch waits for others. max_texts, max_request_bytes: in one request. max_waiting_texts: in all unanswered ones.
    """

    max_batch_tokens: int
    max_wait_ms: float
    max_texts: int
    max_request_bytes: int
    max_waiting_texts: int


class Service:
    """Answers requests over one loaded run."""

    def __init__(self, predictor: Predictor, limits: Limits) -> None:
        self._predictor = predictor
        self._limits = limits
        self._figures = Figures()
        self._waiting = 0
        self._batcher = Batcher(
            self._figures.noting_batches(predictor.step),
            term=predictor.task.term,
            max_batch_tokens=limits.max_batch_tokens,
            max_wait_s=limits.max_wait_ms / 1000,
        )

    def close(self) -> None:
        """Answer what was taken on, and take nothing more."""
        self._batcher.close()

    async def predict(self, request: Request) -> Response:
        """`{"predictions": [...]}`, each as a line of `trainer predict`; an error as `{"detail": "..."}`."""
        began_s, status = time.perf_counter(), 500
        try:
            content: dict[str, Any] = {"predictions": await self._answer(request)}
            status = 200
        except RequestError as error:
            content, status = {"detail": str(error)}, error.status
        finally:
            self._figures.note_request(status=status, seconds=time.perf_counter() - began_s)
        return _json(content, status=status)

    async def _answer(self, request: Request) -> list[Prediction]:
        body = await read_body(request, max_bytes=self._limits.max_request_bytes)
        records = read_records(body, reader=self._predictor.reader, max_texts=self._limits.max_texts)
        if self._waiting + len(records) > self._limits.max_waiting_texts:
            raise RequestError(503, f"{self._waiting} texts wait already; try again later")
        self._count_waiting(len(records))
        try:
            # Tokenizing takes a while, in which the others must be heard.
            examples = await asyncio.to_thread(self._predictor.task.examples, records, self._predictor.tokenizer)
            outputs = await asyncio.wrap_future(self._batcher.submit(examples))
            return await asyncio.to_thread(self._predictor.predictions, records, examples=examples, outputs=outputs)
        except UserError as error:
            raise RequestError(422, str(error)) from None
        finally:
            self._count_waiting(-len(records))

    def _count_waiting(self, more: int) -> None:
        self._waiting += more
        self._figures.waiting.set(self._waiting)

    async def health(self) -> Response:
        """What is served."""
        config = self._predictor.config
        served = {"run": config.name, "task": config.task.name, "checkpoint": self._predictor.checkpoint.name}
        return _json({"status": "ok", **served}, status=200)

    async def metrics(self) -> Response:
        """The figures for Prometheus."""
        return Response(self._figures.text(), media_type=CONTENT_TYPE_LATEST)


async def read_body(request: Request, *, max_bytes: int) -> bytes:
    """A request's body; RequestError where it is longer, which is read to its end, for many clients read only then."""
    body, size = bytearray(), 0
    try:
        async for part in request.stream():
            size += len(part)
            if size <= max_bytes:
                body += part
    except ClientDisconnect:
        raise RequestError(400, "the client left before the end of its request") from None
    if size > max_bytes:
        raise RequestError(413, f"{size} bytes, and one request may hold {max_bytes}; send several requests")
    return bytes(body)


def create_app(predictor: Predictor, *, limits: Limits) -> FastAPI:
    """The service as an ASGI application; the model's thread ends with its lifespan."""
    service = Service(predictor, limits)

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        yield
        await asyncio.to_thread(service.close)

    # Without its pages of documentation, whose scripts come from elsewhere.
    app = FastAPI(title="Bertline", lifespan=lifespan, docs_url=None, redoc_url=None)
    app.add_api_route("/predict", service.predict, methods=["POST"])
    app.add_api_route("/health", service.health)
    app.add_api_route("/metrics", service.metrics)
    return app


def _json(content: dict[str, Any], *, status: int) -> Response:
    return Response(json.dumps(content, ensure_ascii=False), status_code=status, media_type="application/json")
