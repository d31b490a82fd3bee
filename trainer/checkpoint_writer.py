"""Writing checkpoints beside the training: all ranks' parts, atomically, without stopping any rank for it."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable
from dataclasses import asdict
from typing import Any

from torch.distributed.distributed_c10d import Store

from trainer.checkpoint import CheckpointStore
from trainer.checkpoint_files import FileRecord, write_partition
from trainer.errors import UserError
from trainer.events import append_event
from trainer.fragments import EngineState
from trainer.runtime import Runtime

_POLL_S = 0.05


class CheckpointWriter:
    """Writes one checkpoint at a time in a thread of its own; every rank has one and calls the same methods.

    The threads agree through the job's key-value store, not by collectives, so that no rank's training waits for
    another rank's disk. Rank 0's thread publishes the folder once every part is written: it appears whole under its
    name or not at all. What one rank cannot write ends all ranks with one UserError and leaves the earlier
    checkpoints as they are.
    """

    def __init__(self, checkpoints: CheckpointStore, *, runtime: Runtime) -> None:
        self._checkpoints = checkpoints
        self._runtime = runtime
        self._thread: threading.Thread | None = None
        self._failure: BaseException | None = None

    def start(
        self, step: int, engine_state: EngineState, *, state: dict[str, Any], keep_last: int, best_step: int | None
    ) -> None:
        """Begin to write a step's checkpoint, once the one before it is published; nothing given may change after.

        `best_step` is the step, this one or an earlier one, whose checkpoint is kept apart as the best.
        """
        self.wait()
        key = f"bertline/checkpoint-{next(self._runtime.turns)}"

        def write() -> None:
            try:
                meeting = _Meeting(self._runtime, key=key, step=step)
                self._write(meeting, step, engine_state, state, keep_last=keep_last, best_step=best_step)
            except BaseException as failure:
                self._failure = failure

        # A daemon: when training fails, the process must not wait for ranks that are gone.
        self._thread = threading.Thread(target=write, name=f"checkpoint-{step}", daemon=True)
        self._thread.start()

    def poll(self) -> None:
        """Raise what writing failed with, if it has; returns at once."""
        if self._thread is not None and not self._thread.is_alive():
            self.wait()

    def wait(self) -> None:
        """Return when the checkpoint being written is published; raise what it failed with."""
        if self._thread is None:
            return
        self._thread.join()
        self._thread = None
        failure, self._failure = self._failure, None
        if failure is not None:
            raise failure

    def _write(
        self,
        meeting: _Meeting,
        step: int,
        engine_state: EngineState,
        state: dict[str, Any],
        *,
        keep_last: int,
        best_step: int | None,
    ) -> None:
        topology, checkpoints = self._runtime.topology, self._checkpoints

        def publish(records: list[FileRecord]) -> None:
            whole_state = {**state, "step": step, "engine": engine_state.shared}
            checkpoints.publish(step, records, state=whole_state, keep_last=keep_last, best_step=best_step)
            append_event(checkpoints.folder.parent, "save", step=step)

        def write_own_part() -> list[FileRecord]:
            folder = checkpoints.temporary(step)
            return [write_partition(folder, engine_state.tensors, rank=topology.rank, world_size=topology.world_size)]

        try:
            meeting.on_main("folder", lambda: checkpoints.prepare(step))
            records = meeting.on_all("parts", write_own_part)
            meeting.on_main("published", lambda: publish(records))
        except UserError:
            if topology.is_main:
                checkpoints.discard(step)
            raise


class _Meeting:
    """The threads of all ranks that write one checkpoint; a step that fails on one rank fails on all."""

    def __init__(self, runtime: Runtime, *, key: str, step: int) -> None:
        self._topology = runtime.topology
        # A clone, because one that waits holds up every other use of it.
        self._store: Store = runtime.store.clone()  # type: ignore[attr-defined]
        self._key = key
        self._step = step

    def on_main(self, name: str, work: Callable[[], None]) -> None:
        """Rank 0 does it, the others wait until it is done."""

        def without_result() -> list[FileRecord]:
            work()
            return []

        if self._topology.is_main:
            self._tell(name, 0, without_result)
        self._hear(name, 0)

    def on_all(self, name: str, work: Callable[[], list[FileRecord]]) -> list[FileRecord]:
        """Every rank does it and gets the results of all."""
        self._tell(name, self._topology.rank, work)
        return [record for rank in range(self._topology.world_size) for record in self._hear(name, rank)]

    def _tell(self, name: str, rank: int, work: Callable[[], list[FileRecord]]) -> None:
        try:
            told: dict[str, Any] = {"records": [asdict(record) for record in work()]}
        except OSError as error:
            told = {"failure": f"{error.strerror or error}: {error.filename or '(while writing)'}"}
        self._store.set(self._place(name, rank), json.dumps(told))

    def _hear(self, name: str, rank: int) -> list[FileRecord]:
        place = self._place(name, rank)
        while not self._store.check([place]):
            time.sleep(_POLL_S)
        told = json.loads(self._store.get(place))
        if "failure" in told:
            raise UserError(
                f"the checkpoint of step {self._step} could not be written (rank {rank}): {told['failure']}; earlier "
                "checkpoints are untouched: free space or mend the folder, and start again to resume"
            )
        return [FileRecord(**record) for record in told["records"]]

    def _place(self, name: str, rank: int) -> str:
        return f"{self._key}/{name}/{rank}"
