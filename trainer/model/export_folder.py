"""The folder of an exported model: written whole or not at all, in the place of a former export only."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from trainer.errors import UserError, refusals_of

# What config.json says, so that a former export is known.
MARK = {"exported_by": "bertline"}


def check_out(out: Path) -> None:
    """UserError where `out` holds something that is no former export."""
    if not out.exists() or (out.is_dir() and not any(out.iterdir())):
        return
    try:
        former = json.loads((out / "config.json").read_text(encoding="utf-8")).items() >= MARK.items()
    except (OSError, ValueError, AttributeError):
        former = False
    if not former:
        raise UserError(f"{out} exists and is no former export; name another folder or remove it")


@contextmanager
def export_folder(out: Path) -> Iterator[Path]:
    """A folder to write into, which becomes `out` at the end of the body, if that does not fail."""
    out.parent.mkdir(parents=True, exist_ok=True)
    partial = out.with_name(f".{out.name}.partial-{os.getpid()}")
    shutil.rmtree(partial, ignore_errors=True)
    try:
        with refusals_of(out, written_as=partial):
            partial.mkdir()
            yield partial
            _put_in_place(partial, out)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def _put_in_place(partial: Path, out: Path) -> None:
    """Rename `partial` to `out`; a former export steps aside first, so that no reader meets a mixture."""
    for path in filter(Path.is_file, partial.rglob("*")):
        with path.open("rb") as file:
            os.fsync(file.fileno())
    former = out.with_name(f".{out.name}.former-{os.getpid()}")
    if out.exists():
        out.rename(former)
    partial.rename(out)
    shutil.rmtree(former, ignore_errors=True)
