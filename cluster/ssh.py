"""Looking at the hosts over ssh before anything is started on them."""

from __future__ import annotations

import shlex
import subprocess
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from cluster.job import JobSpec
from cluster.launch import first_line
from trainer.errors import UserError

SSH = ("ssh", "-o", "BatchMode=yes", "-o", "ConnectTimeout=5")
_TIMEOUT_S = 20.0
_NO_FOLDER, _NO_PYTHON, _NO_RECIPE = 41, 42, 43


def check_hosts(spec: JobSpec, *, hosts: Sequence[str]) -> None:
    """Raise UserError naming every host that refuses ssh, or does not see folder, interpreter or recipe."""
    command = _look(spec)
    with ThreadPoolExecutor(max_workers=32) as pool:
        found = list(pool.map(lambda host: _ask(host, command=command, spec=spec), hosts))
    faults = [fault for fault in found if fault]
    if faults:
        raise UserError("; ".join(faults))


def _look(spec: JobSpec) -> str:
    """What the remote shell runs: an exit code for the first thing that is missing."""
    recipe = shlex.quote(spec.recipe)
    steps = [
        f"cd {shlex.quote(str(spec.workdir))} 2>/dev/null || exit {_NO_FOLDER}",
        f"command -v {shlex.quote(spec.python)} >/dev/null || exit {_NO_PYTHON}",
        *([f"test -r {recipe} || exit {_NO_RECIPE}"] if Path(spec.recipe).is_absolute() else []),
    ]
    return "; ".join(steps)


def _ask(host: str, *, command: str, spec: JobSpec) -> str | None:
    try:
        done = subprocess.run(
            [*SSH, host, command], stdin=subprocess.DEVNULL, capture_output=True, timeout=_TIMEOUT_S, check=False
        )
    except FileNotFoundError:
        raise UserError("ssh is not on the PATH; install an OpenSSH client") from None
    except subprocess.TimeoutExpired:
        return f"{host} accepts ssh but does not answer within {_TIMEOUT_S:.0f} s; check the host"
    missing = {
        _NO_FOLDER: f"does not see the folder {spec.workdir}; start from one that all hosts share at the same path",
        _NO_PYTHON: f"has no {spec.python}; install the environment at the same path on all hosts",
        _NO_RECIPE: f"does not see the recipe {spec.recipe}; put it on a file system that all hosts share",
    }
    if done.returncode in missing:
        return f"{host} {missing[done.returncode]}"
    if done.returncode:
        return (
            f"{host} refuses ssh without a password: {first_line([done.stderr])}; "
            f"make `ssh {host} true` work first (ssh-copy-id, known_hosts)"
        )
    return None
