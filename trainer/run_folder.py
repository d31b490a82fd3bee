"""The run folder: what a run writes about itself, apart from metrics and checkpoints."""

from __future__ import annotations

import fcntl
import importlib.metadata
import platform
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from data_pipeline.atomic import write_atomically
from trainer.checkpoint_files import write_json
from trainer.config import Config, RunConfig
from trainer.ds_config import DeepSpeedPlan
from trainer.errors import UserError
from trainer.finetune_config import FineTuneConfig
from trainer.recipe import AnyConfig, dump_config, load_any_recipe
from trainer.runtime import Runtime

CONFIG_FILE = "config.yaml"
_PACKAGES = ("torch", "deepspeed", "webdataset", "sentencepiece", "numpy", "safetensors", "pydantic", "tensorboard")


def describe_run(config: RunConfig, *, plan: DeepSpeedPlan, runtime: Runtime) -> None:
    """Write config.yaml, ds_config.json and environment.json; rank 0 calls it, at each start."""
    folder = config.run_dir
    folder.mkdir(parents=True, exist_ok=True)
    write_atomically(folder / CONFIG_FILE, dump_config(config).encode())
    write_json(folder / "ds_config.json", plan.config)
    write_json(folder / "environment.json", environment(runtime))


def environment(runtime: Runtime) -> dict[str, Any]:
    """What the run runs on; no environment variables, which may hold secrets."""
    topology = runtime.topology
    return {
        "git_revision": _git_revision(),
        "python": platform.python_version(),
        "platform": platform.platform(),
        "packages": {name: importlib.metadata.version(name) for name in _PACKAGES},
        "device": runtime.device_name,
        "backend": runtime.backend,
        "threads": runtime.threads,
        "world_size": topology.world_size,
        "num_stages": topology.num_stages,
    }


def _git_revision() -> str | None:
    """The checkout's revision, with `+changes` when files differ from it; None outside a checkout."""
    root = Path(__file__).parent.parent

    def git(*arguments: str) -> str | None:
        try:
            done = subprocess.run(
                ["git", *arguments], cwd=root, capture_output=True, text=True, timeout=10, check=False
            )
        except (OSError, subprocess.TimeoutExpired):
            return None
        return done.stdout.strip() if done.returncode == 0 else None

    revision = git("rev-parse", "HEAD")
    if revision is None:
        return None
    return revision + ("+changes" if git("status", "--porcelain", "--untracked-files=no") else "")


def load_any_run(folder: Path) -> AnyConfig:
    """The resolved recipe of a run folder, of either kind; UserError when the folder is none."""
    path = folder / CONFIG_FILE
    if not path.is_file():
        raise UserError(f"{folder} is not a run folder: it has no {CONFIG_FILE}; name a folder made by `pretrain`")
    return load_any_recipe(str(path))


def load_run(folder: Path) -> Config:
    """The resolved recipe of a pretraining run's folder."""
    config = load_any_run(folder)
    if isinstance(config, FineTuneConfig):
        raise UserError(f"{folder} is a fine-tuned run; this needs one made by `pretrain`")
    return config


def load_finetuned(folder: Path) -> FineTuneConfig:
    """The resolved recipe of a fine-tuned run's folder."""
    config = load_any_run(folder)
    if isinstance(config, Config):
        raise UserError(f"{folder} is a pretraining run; this needs one made by `finetune`")
    return config


@contextmanager
def sole_owner(run_dir: Path) -> Iterator[None]:
    """Hold the run folder for this job; the system lets go of it however the job ends."""
    run_dir.mkdir(parents=True, exist_ok=True)
    with (run_dir / ".lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise UserError(
                f"{run_dir} is in use by another running job; wait for it, end it, or give this run another name "
                "(--set name=...)"
            ) from None
        yield
