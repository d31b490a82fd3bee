"""The hosts as a user of a cluster meets them: a shared folder, a recipe, and `python -m cluster` on the first."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from hosts import SYSTEM_PATH, Hosts
from launching import ROOT

PROFILE = """\
device: cpu
environment: {DS_ACCELERATOR: cpu, OMP_NUM_THREADS: "1", SHOWN: "a $HOME 'quoted' \\"value\\""}
"""
STEPS = 120
# Long enough to be met while it runs; without dropout, which is drawn by rank, other layouts compute the same.
RECIPE_CHANGES = {
    "steps: 24": f"steps: {STEPS}",
    "every_steps: 12": "every_steps: 100",
    "every_steps: 5": "every_steps: 20",
    "micro_batch_size: 2": "micro_batch_size: 1",
    "max_positions: 32": "max_positions: 32\n  hidden_dropout: 0.0\n  attention_dropout: 0.0",
}
# How many faults `make drill` does; 0 in `make test`, where what takes minutes is left out.
DRILL_FAULTS = int(os.environ.get("BERTLINE_DRILL_FAULTS", "0"))
TWO_STEPS = ("--set", "train.steps=2", "--set", "schedule.warmup_steps=1", "--set", "evaluation=null")


class Site(NamedTuple):
    """The hosts, and how a user on the first of them calls `python -m cluster`."""

    hosts: Hosts
    folder: Path
    recipe: Path
    profile: Path
    numbers: Iterator[int]

    @property
    def command(self) -> list[str]:
        """`python -m cluster`."""
        return [sys.executable, "-m", "cluster"]

    @property
    def env(self) -> dict[str, str]:
        """The user's environment."""
        path = f"{Path(sys.executable).parent}:{SYSTEM_PATH}"
        # Open MPI starts as root only when told so twice.
        as_root = {"OMPI_ALLOW_RUN_AS_ROOT": "1", "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM": "1"}
        return {"PATH": path, "PYTHONPATH": str(ROOT), "HOME": os.environ.get("HOME", "/root"), **as_root}

    def cluster(self, *arguments: object, cwd: Path, expect: int | None = 0, host: str = "node1"):
        """Run `python -m cluster ARGUMENTS` on a host."""
        return self.hosts.run(host, *self.command, *arguments, cwd=cwd, env=self.env, expect=expect, timeout_s=200)

    def new_folder(self, name: str = "work") -> Path:
        """An empty folder that all hosts see."""
        folder = self.folder / f"{name}-{next(self.numbers)}"
        folder.mkdir()
        return folder

    def hostfile(self, cwd: Path, *hosts: str, slots: int = 1) -> Path:
        """A hostfile in a folder."""
        path = cwd / "hostfile"
        path.write_text("".join(f"{host} slots={slots}\n" for host in hosts))
        return path


def ranks_on(site: Site, host: str) -> list[str]:
    """Pids, as the host counts them, of the trainers on it."""
    return site.hosts.run(host, "pgrep", "-f", "trainer pretrain", expect=None).stdout.split()
