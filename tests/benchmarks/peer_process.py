"""Our end of the peers: what they work on, written to a folder, and their processes, asked piece by piece."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from tests.benchmarks import hf_trainer
from tests.benchmarks.hf_peers import Int64Array, fast_tokenizer
from trainer.errors import UserError

DEFAULT_PYTHON = Path(".venv-peers/bin/python")


def check_python(python: Path) -> None:
    """UserError unless there is a Python of the peers' own."""
    if not python.exists():
        raise UserError(
            f"{python} does not exist: the peers run in an environment of their own, which `make bench` makes; or name "
            "a Python that has what the Makefile installs there by --peer-python"
        )


def write_peer(
    folder: Path,
    rows: Iterable[Int64Array],
    *,
    rows_as_lists: bool,
    batch_rows: int,
    model: Mapping[str, Any],
    tokenizer: Path,
    use_cpu: bool,
) -> None:
    """Write into `folder` what `hf_trainer` reads; `model` is a config.json's content, `tokenizer` a folder of ours."""
    folder.mkdir(parents=True)
    whole = list(rows)
    np.savez(folder / "rows.npz", tokens=np.concatenate(whole), lengths=[len(row) for row in whole])
    fast_tokenizer(tokenizer).save_pretrained(folder / "tokenizer")
    settings = {"model": model, "batch_rows": batch_rows, "rows_as_lists": rows_as_lists, "use_cpu": use_cpu}
    (folder / "settings.json").write_text(json.dumps(settings), encoding="utf-8")


class PeerProcess:
    """A peer's `program` on a folder written for it, run by `python`, ready for its first piece, on our cores."""

    def __init__(self, python: Path, folder: Path, *, program: Sequence[str] = (hf_trainer.__file__,)) -> None:
        environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
        self._process = subprocess.Popen(
            [str(python), *program, str(folder)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env=environment,
            text=True,
        )
        self.versions = self._read()

    def step(self) -> int:
        """Have it take one step or make one batch; gives its tokens that are not padding."""
        assert self._process.stdin is not None
        self._process.stdin.write("step\n")
        self._process.stdin.flush()
        return int(self._read())

    def _read(self) -> str:
        assert self._process.stdout is not None
        line = self._process.stdout.readline().strip()
        if not line:
            raise UserError(f"the peer's process ended with exit code {self._process.wait()}; its own lines say why")
        return line

    def close(self) -> None:
        """Let it end, and wait until it has."""
        self._process.communicate()
