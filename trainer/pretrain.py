"""`trainer pretrain`: one process of a training run, from the recipe to the exported encoder."""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path

from data_pipeline.manifest import TOKENIZER_FOLDER, load_manifest
from data_pipeline.tokenizer import Tokenizer, copy_tokenizer
from trainer.config import Config
from trainer.errors import UserError
from trainer.export import export_checkpoint, require_export
from trainer.loop import Trainer
from trainer.metrics import MetricsWriter
from trainer.places import remote_scheme
from trainer.prepare import local_shards, shard_folders
from trainer.progress import ProgressReporter
from trainer.resume import Resume
from trainer.run_folder import describe_run
from trainer.runtime import on_main, started
from trainer.setup import Run, set_up
from trainer.topology import topology_from_env


def pretrain(config: Config, *, resume: Resume) -> None:
    """Train as the recipe says; every process that a launcher started calls it with the same arguments."""
    topology = topology_from_env(os.environ)
    progress = ProgressReporter(config.train.steps, start_step=0, is_main=topology.is_main)
    if config.export:
        require_export()
    with ExitStack() as held, started(topology, deterministic=config.deterministic) as runtime:

        def prepare() -> list[Path]:
            held.enter_context(_sole_owner(config.run_dir))
            return shard_folders(config, report=progress.message)

        shards = _on_this_host(config, on_main(runtime, prepare))
        run = set_up(config, shards=shards, runtime=runtime, resume=resume, report=progress.message)
        if topology.is_main:
            describe_run(run.config, plan=run.ds_plan, runtime=runtime)
            _keep_tokenizer(run.corpus.sources[0].folder, run.config.run_dir)
        _train(run)
        if config.export:
            on_main(runtime, lambda: export_checkpoint(run.config.run_dir, which="auto"))
            progress.message(f"exported to {run.config.run_dir / 'export'}")


def _train(run: Run) -> None:
    is_main = run.runtime.is_main
    with (
        ProgressReporter(run.config.train.steps, start_step=run.state.step, is_main=is_main) as progress,
        MetricsWriter(run.config.run_dir, is_main=is_main, resume_step=run.state.step) as metrics,
    ):
        try:
            Trainer(run, metrics=metrics, progress=progress).train()
        finally:
            run.loader.close()


def _on_this_host(config: Config, folders: Sequence[Path]) -> list[Path]:
    """The main rank's folders of shards, or this host's own mirrors of those on the network; UserError when unlike."""
    own = []
    for source, folder in zip(config.data.all_sources, folders, strict=True):
        is_remote = source.shards is not None and remote_scheme(source.shards) is not None
        own.append(local_shards(str(source.shards), config) if is_remote else folder)
        # A mirror is named for what its manifest says.
        if own[-1].name != folder.name:
            raise UserError(
                f"{source.shards} holds other shards than a moment ago, when the main rank looked; start again when "
                "whoever writes there has finished"
            )
    return own


def _keep_tokenizer(shards: Path, run_dir: Path) -> None:
    """Copy the tokenizer into the run folder: a run can be exported after its shards are gone."""
    tokenizer = Tokenizer.load(shards / TOKENIZER_FOLDER)
    if tokenizer.sha256 != load_manifest(shards).tokenizer_sha256:
        raise UserError(
            f"{tokenizer.folder} is not the tokenizer that {shards} was built with (another sha256); copy the shards "
            "again, or build them anew"
        )
    copy_tokenizer(tokenizer, folder=run_dir / "tokenizer")


@contextmanager
def _sole_owner(run_dir: Path) -> Iterator[None]:
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
