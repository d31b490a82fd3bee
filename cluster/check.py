"""`trainer check` for a job's layout, before it is started or queued."""

from __future__ import annotations

import importlib.util
import subprocess
import sys
from collections.abc import Callable

from cluster.job import JobSpec
from cluster.launch import first_line
from trainer.errors import UserError


def run_check(spec: JobSpec, *, report: Callable[[str], None]) -> None:
    """Raise UserError for what the trainer would refuse at its start.

    It runs in a process of its own: it computes with PyTorch, which a login node may lack. There the ranks check
    themselves, and `report` says so.
    """
    if importlib.util.find_spec("torch") is None:
        report("no PyTorch here: the recipe's batch was checked, the rest is when the job starts")
        return
    device = ["--device", "cuda" if spec.profile.device == "gpu" else "cpu"] if spec.profile_source else []
    settings = [part for override in spec.overrides for part in ("--set", override)]
    argv = [sys.executable, "-m", "trainer", "check", spec.recipe, *settings, "--world-size", str(spec.world_size)]
    done = subprocess.run([*argv, *device], capture_output=True, text=True, check=False)
    if done.returncode:
        errors = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
        raise UserError(errors[0].removeprefix("error: ") if errors else f"trainer check: {first_line([done.stderr])}")
