"""The hosts as a user of a cluster meets them: a shared folder, a recipe, and `python -m cluster` on the first."""

from __future__ import annotations

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
TWO_STEPS = ("--set", "train.steps=2", "--set", "schedule.warmup_steps=1", "--set", "evaluation=null")


class Site(NamedTuple):
    """The hosts, and how a user on the first of them calls `python -m cluster`."""

    hosts: Hosts
    folder: Path
    recipe: Path
    profile: Path
    numbers: Iterator[int]

    def cluster(self, *arguments: object, cwd: Path, expect: int | None = 0, host: str = "node1"):
        """Run `python -m cluster ARGUMENTS` on a host."""
        path = f"{Path(sys.executable).parent}:{SYSTEM_PATH}"
        env = {"PATH": path, "PYTHONPATH": str(ROOT)}
        # Open MPI starts as root only when told so twice.
        env |= {"OMPI_ALLOW_RUN_AS_ROOT": "1", "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM": "1"}
        command = [sys.executable, "-m", "cluster", *arguments]
        return self.hosts.run(host, *command, cwd=cwd, env=env, expect=expect, timeout_s=200)

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
