"""Saving and choosing checkpoints of a run: atomic, checked, rotated, the best kept apart."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch.distributed as dist

from trainer.checkpoint_files import (
    STATE_FILE,
    FileRecord,
    find_damage,
    fsync_path,
    remove_folder,
    seal,
    write_json,
    write_partition,
)
from trainer.errors import UserError
from trainer.fragments import EngineState
from trainer.topology import Topology

LATEST = "latest"
BEST = "best"
_STEP_FOLDER = re.compile(r"step-(\d{8,})$")


def step_folder_name(step: int) -> str:
    """`step-00000100`: sorts as text and as number."""
    return f"step-{step:08d}"


class CheckpointStore:
    """The folder `checkpoints/` of a run. Reading is for any process; `save` is collective."""

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

    def save(
        self,
        step: int,
        engine_state: EngineState,
        *,
        state: dict[str, Any],
        topology: Topology,
        keep_last: int,
        best_step: int | None,
    ) -> None:
        """Write a checkpoint from all ranks' parts, flip the pointers and remove what is no longer kept.

        `best_step` is the step, this one or an earlier one, whose checkpoint is kept apart as the best.

        Collective. Either the whole folder appears under its name or nothing does; what one rank cannot write
        ends all ranks with one UserError and leaves the earlier checkpoints as they are.
        """
        is_main = topology.rank == 0
        temporary = self.folder / f".saving-{step_folder_name(step)}"

        def prepare() -> list[FileRecord]:
            if is_main:
                for leftover in self.folder.glob(".saving-*"):
                    remove_folder(leftover)
                temporary.mkdir(parents=True)
            return []

        def write_own_part() -> list[FileRecord]:
            return [
                write_partition(temporary, engine_state.tensors, rank=topology.rank, world_size=topology.world_size)
            ]

        def publish() -> list[FileRecord]:
            if is_main:
                whole_state = {**state, "step": step, "engine": engine_state.shared}
                seal(temporary, [*records, write_json(temporary / STATE_FILE, whole_state)])
                remove_folder(self.path(step))
                temporary.rename(self.path(step))
                fsync_path(self.folder)
                self._point(LATEST, step)
                if best_step in self.steps() and best_step != self.best_step():
                    self._point(BEST, best_step)
                self._rotate(step, keep_last=keep_last)
            return []

        records: list[FileRecord] = []
        for stage in (prepare, write_own_part, publish):
            records += self._together(stage, step=step, topology=topology, temporary=temporary)

    def _together(
        self, stage: Callable[[], list[FileRecord]], *, step: int, topology: Topology, temporary: Path
    ) -> list[FileRecord]:
        """Run one stage on every rank; all go on with all results, or all stop with the first failure."""
        failure, result = None, []
        try:
            result = stage()
        except OSError as error:
            failure = f"{error.strerror or error}: {error.filename or temporary}"
        outcomes: list[Any] = [None] * topology.world_size
        dist.all_gather_object(outcomes, (failure, result))
        failures = [(rank, outcome[0]) for rank, outcome in enumerate(outcomes) if outcome[0]]
        if failures:
            if topology.rank == 0:
                remove_folder(temporary)
            rank, what = failures[0]
            raise UserError(
                f"the checkpoint of step {step} could not be written (rank {rank}): {what}; earlier checkpoints are "
                "untouched: free space or mend the folder, and start again to resume"
            )
        return [record for _, records in outcomes for record in records]

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
