"""`trainer serve`: a fine-tuned run behind HTTP."""

from __future__ import annotations

import argparse
from importlib.util import find_spec

from trainer.commands.arguments import Commands, add_run
from trainer.errors import UserError

_PACKAGES = {"fastapi": "fastapi", "uvicorn": "uvicorn", "prometheus_client": "prometheus-client"}


def add_parser(commands: Commands) -> None:
    """Add the command to the command line."""
    parser = commands.add_parser("serve", help="answer predictions of a fine-tuned run over HTTP")
    add_run(parser)
    parser.add_argument("--host", default="127.0.0.1", metavar="NAME", help="the address to listen on [127.0.0.1]")
    parser.add_argument("--port", type=_port, default=8000, metavar="N", help="0 takes a free one [8000]")
    parser.add_argument(
        "--max-batch-tokens", type=_positive, metavar="N", help="in one forward pass [the recipe's batch_tokens]"
    )
    parser.add_argument(
        "--max-wait-ms", type=_wait, default=5.0, metavar="T", help="how long a request waits for others [5]"
    )
    parser.add_argument("--max-texts", type=_positive, default=256, metavar="N", help="in one request [256]")
    parser.add_argument(
        "--max-request-bytes", type=_positive, default=1 << 20, metavar="N", help="of one request [1,048,576]"
    )
    parser.add_argument(
        "--max-waiting-texts", type=_positive, default=4096, metavar="N", help="unanswered, of all requests [4,096]"
    )
    parser.set_defaults(run=_run)


def _positive(text: str) -> int:
    if not text.isdecimal() or int(text) == 0:
        raise argparse.ArgumentTypeError(f"{text!r} must be a whole number from 1 on")
    return int(text)


def _port(text: str) -> int:
    if not text.isdecimal() or int(text) > 65535:
        raise argparse.ArgumentTypeError(f"{text!r} must be a whole number from 0 to 65535")
    return int(text)


def _wait(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = -1.0
    if not 0.0 <= value <= 60_000.0:
        raise argparse.ArgumentTypeError(f"{text!r} must be a number of milliseconds from 0 to 60000")
    return value


def _run(options: argparse.Namespace) -> int:
    missing = [package for module, package in _PACKAGES.items() if find_spec(module) is None]
    if missing:
        raise UserError(f"serving needs the package {missing[0]}; pip install 'bertline[serve]'")
    from trainer.run_folder import load_finetuned
    from trainer.serving.app import Limits
    from trainer.serving.server import serve

    batch_tokens = load_finetuned(options.run_dir).evaluation.batch_tokens
    limits = Limits(
        max_batch_tokens=options.max_batch_tokens or batch_tokens,
        max_wait_ms=options.max_wait_ms,
        max_texts=options.max_texts,
        max_request_bytes=options.max_request_bytes,
        max_waiting_texts=options.max_waiting_texts,
    )
    serve(options.run_dir, which=options.checkpoint, host=options.host, port=options.port, limits=limits)
    return 0
