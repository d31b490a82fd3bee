"""`python -m trainer` as a user meets it: real processes, exit codes and streams.

Importing torch and DeepSpeed takes seconds, so that one process imports them once and forks each command.
Run as a program, this file is that process.
"""

from __future__ import annotations

import json
import os
import runpy
import signal
import socket
import subprocess
import sys
import tempfile
import traceback
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

ROOT = Path(__file__).resolve().parents[2]
LAUNCHER_VARIABLES = (
    "RANK",
    "WORLD_SIZE",
    "LOCAL_RANK",
    "LOCAL_WORLD_SIZE",
    "LOCAL_SIZE",
    "MASTER_ADDR",
    "MASTER_PORT",
)


class Finished(NamedTuple):
    """How a command ended and what it wrote."""

    code: int
    out: str
    err: str


class Commands:
    """Starts commands; a context manager."""

    def __init__(self) -> None:
        kept = {name: value for name, value in os.environ.items() if name not in LAUNCHER_VARIABLES}
        threads = {"OMP_NUM_THREADS": "1", "DS_ACCELERATOR": "cpu", "PYTHONPATH": str(ROOT)}
        self._folder = tempfile.TemporaryDirectory(prefix="bertline-commands-")
        self._started = 0
        self._server = subprocess.Popen(
            [sys.executable, __file__],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env={**kept, **threads},
        )

    def __enter__(self) -> Commands:
        return self

    def __exit__(self, *_: object) -> None:
        self._server.communicate()
        self._folder.cleanup()

    def start(
        self, *arguments: object, cwd: Path, env: Mapping[str, str] | None = None, program: Path | None = None
    ) -> int:
        """Start `python -m trainer ARGUMENTS`, or another program; gives a number to wait for."""
        self._started += 1
        argv = [str(program or "trainer"), *map(str, arguments)]
        self._ask(start=self._started, argv=argv, cwd=str(cwd), env=env or {}, out=self._out)
        return self._started

    def wait(self, number: int) -> Finished:
        """Wait until a started command ends."""
        code = self._ask(wait=number)
        return Finished(code, *(Path(f"{self._out}.{number}.{stream}").read_text("utf-8") for stream in ("out", "err")))

    def said(self, number: int) -> str:
        """What a started command has written so far."""
        path = Path(f"{self._out}.{number}.out")
        return path.read_text("utf-8") if path.is_file() else ""

    def tell(self, number: int, what: signal.Signals) -> None:
        """Send a signal to a started command."""
        self._ask(tell=number, signal=int(what))

    def run(self, *arguments: object, cwd: Path) -> Finished:
        """Run a command to its end."""
        return self.wait(self.start(*arguments, cwd=cwd))

    def run_ranks(self, *arguments: object, cwd: Path, ranks: int, program: Path | None = None) -> list[Finished]:
        """Run a command as so many ranks of one job, without a launcher that would end the ones left over."""
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            meeting = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(probe.getsockname()[1])}
        sizes = {"WORLD_SIZE": str(ranks), "LOCAL_WORLD_SIZE": str(ranks)}
        numbers = [
            self.start(*arguments, cwd=cwd, env={**meeting, **sizes, **place}, program=program)
            for place in ({"RANK": str(rank), "LOCAL_RANK": str(rank)} for rank in range(ranks))
        ]
        return [self.wait(number) for number in numbers]

    def mistake(self, *arguments: object, cwd: Path) -> str:
        """The one line of a command that a user's mistake ends."""
        return one_line_of(self.run(*arguments, cwd=cwd))

    @property
    def _out(self) -> str:
        return f"{self._folder.name}/command"

    def _ask(self, **request: Any) -> int:
        assert self._server.stdin is not None
        assert self._server.stdout is not None
        self._server.stdin.write(json.dumps(request) + "\n")
        self._server.stdin.flush()
        return int(self._server.stdout.readline())


def one_line_of(done: Finished) -> str:
    """The line on standard error, where it is all that was written there and the exit code is a user's mistake's."""
    assert done.code == 2, done
    assert done.err.startswith("error: "), done
    assert done.err.count("\n") == 1, done
    return done.err


def _serve() -> None:
    import deepspeed  # noqa: F401

    import trainer.pretrain  # noqa: F401

    started: dict[int, int] = {}
    replies = os.fdopen(os.dup(1), "w")
    for line in sys.stdin:
        request = json.loads(line)
        if "wait" in request:
            answer = os.waitstatus_to_exitcode(os.waitpid(started.pop(request["wait"]), 0)[1])
        elif "tell" in request:
            answer = 0
            os.kill(started[request["tell"]], request["signal"])
        else:
            answer = os.fork()
            if answer == 0:
                _become(request)
            started[request["start"]] = answer
        print(answer, file=replies, flush=True)


def _become(request: dict[str, Any]) -> None:
    os.chdir(request["cwd"])
    os.environ.update(request["env"])
    for descriptor, stream in ((1, "out"), (2, "err")):
        path = f"{request['out']}.{request['start']}.{stream}"
        os.dup2(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o644), descriptor)
    sys.argv = request["argv"]
    code: Any = 0
    try:
        run = runpy.run_path if sys.argv[0].endswith(".py") else partial(runpy.run_module, alter_sys=True)
        run(sys.argv[0], run_name="__main__")
    except SystemExit as end:
        code = end.code or 0
    except BaseException:
        traceback.print_exc()
        code = 1
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


if __name__ == "__main__":
    _serve()
