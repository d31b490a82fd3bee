"""A run's metrics on disk: one JSON object a record in metrics.jsonl, and the same as TensorBoard scalars."""

from __future__ import annotations

import contextlib
import json
import math
import os
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import cache
from pathlib import Path
from types import TracebackType
from typing import IO, Any

from trainer.errors import UserError
from trainer.tensorboard_page import custom_layout, hyperparameters

METRICS_FILE = "metrics.jsonl"
TENSORBOARD_DIR = "tensorboard"


class MetricsWriter:
    """Writes `run_dir`/metrics.jsonl and `run_dir`/tensorboard on the main rank; elsewhere it does nothing.

    Records later than `resume_step` are those of a run that was cut off: they are dropped, since the
    run computes these steps again, and no step stands there twice. A last line torn by the cut goes too.
    Raises UserError when metrics.jsonl is damaged elsewhere. `layer_norms`: whether such figures will come.
    """

    def __init__(
        self,
        run_dir: Path,
        *,
        is_main: bool,
        resume_step: int,
        layer_norms: bool = False,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._clock = clock
        self._file: IO[str] | None = None
        if not is_main:
            return
        # TensorBoard takes more than a second to import; only the rank that writes pays for it.
        from torch.utils.tensorboard import SummaryWriter

        _silence_tensorboards_thread()
        run_dir.mkdir(parents=True, exist_ok=True)
        path = run_dir / METRICS_FILE
        drop_records_after(path, step=resume_step)
        self._file = path.open("a", encoding="utf-8")
        self._tensorboard: Any = SummaryWriter(log_dir=str(run_dir / TENSORBOARD_DIR), purge_step=resume_step + 1)
        self._tensorboard.add_custom_scalars(custom_layout(layer_norms=layer_norms))

    def write(self, values: Mapping[str, float | Sequence[float]], *, step: int, applied_steps: int) -> None:
        """Append one record, `{"step", "applied_steps", "time_s", **values}`, and hand it to the system at once.

        `time_s` is seconds since 1970. Floats are written so that they read back equal, bit for bit; what is no
        number is null, since JSON has no NaN and no infinity. A sequence has one value a rank, each a curve of its
        own in TensorBoard, `KEY/RANK`.
        """
        if self._file is None:
            return
        now = self._clock()
        record: dict[str, Any] = {"step": step, "applied_steps": applied_steps, "time_s": now}
        record |= {
            key: [_as_json(each) for each in value] if isinstance(value, Sequence) else _as_json(value)
            for key, value in values.items()
        }
        try:
            self._file.write(json.dumps(record, allow_nan=False) + "\n")
            self._file.flush()
        except OSError as error:
            raise UserError(
                f"{self._file.name} could not be written at step {step}: {error.strerror}; free space and start again "
                "to resume"
            ) from error
        with self._telling(step=step):
            for key, value in values.items():
                for tag, each in _curves(key, value).items():
                    self._tensorboard.add_scalar(tag, each, global_step=step, walltime=now)

    def write_text(self, tag: str, markdown: str, *, step: int) -> None:
        """Show a text in TensorBoard; it is in no metrics.jsonl."""
        if self._file is None:
            return
        with self._telling(step=step):
            self._tensorboard.add_text(tag, markdown, global_step=step, walltime=self._clock())

    def write_hyperparameters(self, settings: Mapping[str, Any], *, scores: Mapping[str, float]) -> None:
        """Set a finished run's settings beside its scores, so that TensorBoard can compare runs.

        The scores' keys are those of scalars: the page shows each run's last value.
        """
        if self._file is None:
            return
        from torch.utils.tensorboard import summary

        # `add_hparams` would make a run of its own in a folder below this one.
        session: Any = summary  # it carries no types
        for event in session.hparams(hyperparameters(settings), dict(scores)):
            self._tensorboard.file_writer.add_summary(event)

    @contextlib.contextmanager
    def _telling(self, *, step: int) -> Iterator[None]:
        """Say what TensorBoard's thread could not write; it tells of that without a name, and some calls later."""
        try:
            yield
        except OSError as error:
            raise UserError(
                f"{self._tensorboard.log_dir} could not be written at step {step}: {error.strerror}; free space and "
                "start again to resume"
            ) from error

    def close(self) -> None:
        """Close both files; writing afterwards does nothing."""
        if self._file is not None:
            self._file.close()
            self._file = None
            self._tensorboard.close()

    def __enter__(self) -> MetricsWriter:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        # What ends the run is not to be hidden by a disk on which nothing can be closed either.
        with contextlib.suppress(*([OSError] if kind else [])):
            self.close()


@cache
def _silence_tensorboards_thread() -> None:
    """Leave out the traceback of TensorBoard's writing thread: its error is raised again where the next is written."""
    from tensorboard.summary.writer.event_file_writer import _AsyncWriterThread

    shown = threading.excepthook

    def hook(args: threading.ExceptHookArgs) -> None:
        if not isinstance(args.thread, _AsyncWriterThread):
            shown(args)

    threading.excepthook = hook


def _as_json(value: float) -> float | None:
    return value if math.isfinite(value) else None


def _curves(key: str, value: float | Sequence[float]) -> dict[str, float]:
    """The scalars by which TensorBoard shows a figure."""
    if isinstance(value, Sequence):
        return {f"{key}/{rank:04d}": each for rank, each in enumerate(value)}
    return {key: value}


def read_records(path: Path) -> list[dict[str, Any]]:
    """All whole records of a metrics.jsonl; a torn last line is left out, other damage is a UserError."""
    return [json.loads(line) for line in _whole_lines(path)]


def drop_records_after(path: Path, *, step: int) -> None:
    """Remove the records later than `step`, and a torn last line, in one atomic replacement of the file."""
    if not path.exists():
        return
    kept = "".join(line for line in _whole_lines(path) if json.loads(line)["step"] <= step)
    if kept.encode() == path.read_bytes():
        return
    draft = path.with_name(f"{path.name}.tmp")
    with draft.open("w", encoding="utf-8") as file:
        file.write(kept)
        file.flush()
        os.fsync(file.fileno())
    draft.replace(path)


def _whole_lines(path: Path) -> list[str]:
    lines = path.read_text(encoding="utf-8", errors="replace").splitlines(keepends=True)
    if lines and not (lines[-1].endswith("\n") and _is_record(lines[-1])):
        lines.pop()
    for number, line in enumerate(lines, start=1):
        if not _is_record(line):
            raise UserError(f"{path}:{number}: not a metrics record (a JSON object with a step); remove the line")
    return lines


def _is_record(line: str) -> bool:
    try:
        record = json.loads(line)
    except ValueError:
        return False
    return isinstance(record, dict) and isinstance(record.get("step"), int)
