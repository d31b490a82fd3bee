"""Shards that are not what their manifest says: how that is named, and what was left out because of it."""

from __future__ import annotations

import threading
from pathlib import Path

from trainer.errors import UserError


class ShardDamage(UserError):
    """A shard or index that is not what the manifest says; `finding` is what and where, without the advice."""

    finding: str

    @classmethod
    def of(cls, where: Path | str, what: str, *, expected: object, found: object) -> ShardDamage:
        """The damage of `what` in the file `where`, a path or a URL."""
        finding = f"{where}: {what} is {found}, where {expected} is expected"
        folder = str(where).rpartition("/")[0] or "."
        damage = cls(
            f"{finding}; see what else is damaged by `python -m data_pipeline verify {folder}`, "
            "then copy or build the shards again"
        )
        damage.finding = finding
        return damage


class BlockDamage(ShardDamage):
    """Damage within the bytes of one block, the rest of the shards being as good as before."""


class SkippedBlocks:
    """The damaged blocks that readers left out, each with its finding; shared by the readers of one rank."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._findings: dict[str, str] = {}

    def add(self, block: str, *, finding: str) -> None:
        """Note a block by a name that is the same on every rank."""
        with self._lock:
            self._findings[block] = finding

    def findings(self) -> dict[str, str]:
        """Finding by block, of all blocks left out so far."""
        with self._lock:
            return dict(self._findings)
