"""Saving and choosing checkpoints of a run: atomic, checked, rotated, the best kept apart."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

from trainer.checkpoint_files import (
    STATE_FILE,
    FileRecord,
    find_damage,
    fsync_path,
    remove_folder,
    seal,
    write_json,
)
from trainer.errors import UserError

LATEST = "latest"
BEST = "best"
_STEP_FOLDER = re.compile(r"step-(\d{8,})$")


def step_folder_name(step: int) -> str:
    """`step-00000100`: sorts as text and as number."""
    return f"step-{step:08d}"


class CheckpointStore:
    """The folder `checkpoints/` of a run; `trainer.checkpoint_writer` writes into it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def steps(self) -> list[int]:
        """Steps of the folders that look like checkpoints, ascending."""
        if not self.folder.is_dir():
            return []
        matches = (_STEP_FOLDER.match(path.name) for path in self.folder.iterdir() if path.is_dir())
        return sorted(int(match.group(1)) for match in matches if match)

    def path(self, step: int) -> Path:
        """The folder of one step's checkpoint."""
        return self.folder / step_folder_name(step)

    def best_step(self) -> int | None:
        """The step that `best` names, None when it names no folder that is there."""
        return self._pointed(BEST)

    def newest_whole(self, *, report: Callable[[str], None]) -> Path | None:
        """The newest checkpoint whose every checksum holds, None when there is no checkpoint.

        Damaged ones are named through `report` and passed over; when all are damaged, UserError.
        """
        steps = self.steps()
        for step in reversed(steps):
            damage = find_damage(self.path(step))
            if damage is None:
                return self.path(step)
            report(f"{self.path(step)} is damaged: {damage}; trying the one before")
        if steps:
            raise UserError(
                f"{self.folder}: none of the {len(steps)} checkpoints is whole; restore one from a copy, or start "
                "anew with --resume never after moving the run folder away"
            )
        return None

    def named(self, which: str) -> Path:
        """The checkpoint called `best`, `latest` or `step-NNNNNNNN`; UserError when it is absent or damaged."""
        step = self._pointed(which) if which in (BEST, LATEST) else None
        if step is None and (match := _STEP_FOLDER.match(which)):
            step = int(match.group(1))
        if step is None or step not in self.steps():
            there = ", ".join(step_folder_name(step) for step in self.steps()) or "none"
            raise UserError(f"{self.folder}: no checkpoint {which!r}; there are: {there}")
        damage = find_damage(self.path(step))
        if damage is not None:
            raise UserError(f"{self.path(step)} is damaged: {damage}; name another checkpoint")
        return self.path(step)

    def _pointed(self, pointer: str) -> int | None:
        try:
            match = _STEP_FOLDER.match((self.folder / pointer).read_text(encoding="utf-8").strip())
        except (OSError, UnicodeDecodeError):
            return None
        return int(match.group(1)) if match and int(match.group(1)) in self.steps() else None

    def temporary(self, step: int) -> Path:
        """Where a step's checkpoint is put together before it gets its name."""
        return self.folder / f".saving-{step_folder_name(step)}"

    def prepare(self, step: int) -> None:
        """Make an empty folder to put a checkpoint together in, and remove what crashes left; one process calls it."""
        for leftover in self.folder.glob(".saving-*"):
            remove_folder(leftover)
        self.temporary(step).mkdir(parents=True)

    def publish(
        self, step: int, records: list[FileRecord], *, state: dict[str, Any], keep_last: int, best_step: int | None
    ) -> None:
        """Seal the folder, give it its name, flip the pointers, remove what is no longer kept; one process calls it."""
        temporary = self.temporary(step)
        seal(temporary, [*records, write_json(temporary / STATE_FILE, state)])
        remove_folder(self.path(step))
        temporary.rename(self.path(step))
        fsync_path(self.folder)
        self._point(LATEST, step)
        if best_step in self.steps() and best_step != self.best_step():
            self._point(BEST, best_step)
        self._rotate(step, keep_last=keep_last)

    def discard(self, step: int) -> None:
        """Remove a checkpoint that could not be finished."""
        remove_folder(self.temporary(step))

    def _point(self, pointer: str, step: int) -> None:
        temporary = self.folder / f".{pointer}.tmp"
        temporary.write_text(f"{step_folder_name(step)}\n", encoding="utf-8")
        fsync_path(temporary)
        temporary.replace(self.folder / pointer)
        fsync_path(self.folder)

    def _rotate(self, newest: int, *, keep_last: int) -> None:
        """Keep the best and the last ones up to step `newest`.

        Later ones were damaged when the run resumed behind them: kept, they would push out whole ones.
        """
        steps = self.steps()
        kept = {*[step for step in steps if step <= newest][-keep_last:], self.best_step()}
        for step in steps:
            if step > newest or step not in kept:
                remove_folder(self.path(step))
