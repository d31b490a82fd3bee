"""A run that no longer moves: each rank writes where all its threads stand, and ends."""

from __future__ import annotations

import contextlib
import faulthandler
from pathlib import Path
from types import TracebackType
from typing import IO

STACKS_DIR = "stacks"


class StallWatch:
    """Ends this process with exit code 1 when no `beat` came for so long; a context manager.

    Where a collective waits for a rank that is stopped or cut off, all ranks stand still and all of them write
    `run_dir`/stacks/rank-N.txt. The clock is outside Python: it runs while the interpreter waits. minutes: None for
    no watch.
    """

    def __init__(self, run_dir: Path, *, rank: int, minutes: float | None) -> None:
        self._path = run_dir / STACKS_DIR / f"rank-{rank}.txt"
        self._minutes = minutes
        self._file: IO[str] | None = None

    def __enter__(self) -> StallWatch:
        if self._minutes is not None:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            self._file = self._path.open("w", encoding="utf-8")
        self.beat()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._file is not None:
            faulthandler.cancel_dump_traceback_later()
            self._file.close()
            self._file = None
            self._path.unlink(missing_ok=True)
            # Another rank's file may still be there.
            with contextlib.suppress(OSError):
                self._path.parent.rmdir()

    def beat(self) -> None:
        """Say that the run moves: the clock starts again."""
        if self._file is not None and self._minutes is not None:
            faulthandler.dump_traceback_later(60 * self._minutes, exit=True, file=self._file)
