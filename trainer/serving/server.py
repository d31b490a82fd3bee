"""A server process: listen, answer, and stop when told to."""

from __future__ import annotations

import signal
import socket
from pathlib import Path

import uvicorn

from trainer.errors import UserError
from trainer.serving.app import Limits, create_app
from trainer.task_predict import Predictor

# So long requests that were taken on may still take once the server was told to stop.
_LAST_ANSWERS_S = 30


def serve(run_dir: Path, *, which: str, host: str, port: int, limits: Limits) -> None:
    """Serve a run's checkpoint until SIGTERM or SIGINT; what was taken on before is still answered.

    Port 0 takes a free one. UserError where the address cannot be had, or `run_dir` is no fine-tuned run.
    """
    with bind(host, port) as listener:
        predictor = Predictor.load(run_dir, which=which)
        app = create_app(predictor, limits=limits)
        server = uvicorn.Server(
            uvicorn.Config(app, log_level="warning", access_log=False, timeout_graceful_shutdown=_LAST_ANSWERS_S)
        )
        # uvicorn stops in good order, and then raises the signal again for whoever handled it before.
        signal.signal(signal.SIGTERM, lambda *_: None)
        shown = f"[{host}]" if ":" in host else host
        print(f"{predictor.checkpoint} on http://{shown}:{listener.getsockname()[1]}", flush=True)
        server.run(sockets=[listener])


def bind(host: str, port: int) -> socket.socket:
    """A socket with the address, on which nobody listens yet: until the model is there, clients are refused."""
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        listener = socket.socket(family, kind, protocol)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(address)
    except OSError as error:
        raise UserError(f"cannot serve on {host}:{port} ({error.strerror}); choose another --host or --port") from None
    return listener
