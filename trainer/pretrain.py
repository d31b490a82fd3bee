"""`trainer pretrain`: one process of a training run, from the recipe to the exported encoder."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from pathlib import Path

from data_pipeline.manifest import load_manifest
from data_pipeline.tokenizer import copy_tokenizer
from data_pipeline.vocabulary import load_tokenizer
from trainer.config import Config
from trainer.errors import UserError
from trainer.events import append_event
from trainer.export import export_checkpoint, require_export
from trainer.loop import Trainer
from trainer.metrics import MetricsWriter
from trainer.places import remote_scheme
from trainer.preemption import Preemption, StoppedEarly
from trainer.prepare import local_shards, shard_folders
from trainer.pretraining_run import PretrainingRun
from trainer.progress import ProgressReporter
from trainer.rank_health import note_start
from trainer.resume import Resume
from trainer.run_folder import describe_run, sole_owner
from trainer.runtime import Runtime, on_main, started
from trainer.setup import plan_layout, set_up
from trainer.stall import StallWatch
from trainer.topology import topology_from_env


def pretrain(config: Config, *, resume: Resume) -> bool:
    """Train as the recipe says; every process that a launcher started calls it with the same arguments.

    False when the job was told to stop (trainer.preemption) and has saved before its last step.
    """
    topology = topology_from_env(os.environ, num_stages=config.parallel.num_stages)
    progress = ProgressReporter(config.train.steps, start_step=0, is_main=topology.is_main)
    if config.export:
        require_export()
    with ExitStack() as held, started(topology, deterministic=config.deterministic) as runtime:
        shards = ready_shards(config, runtime=runtime, held=held, report=progress.message)
        run = set_up(config, shards=shards, runtime=runtime, resume=resume, report=progress.message)
        if topology.is_main:
            describe_run(run.config, plan=run.ds_plan, runtime=runtime)
            _keep_tokenizer(run.corpus.sources[0].folder, run.config.run_dir)
        note_start(run.config.run_dir, step=run.state.step, topology=topology)
        finished = _train(run)
        if topology.is_main:
            append_event(run.config.run_dir, "finished" if finished else "stopped", step=run.state.step)
        if not finished:
            progress.message(f"told to stop: saved step {run.state.step}; start again to go on")
        elif config.export:
            on_main(runtime, lambda: export_checkpoint(run.config.run_dir, which="auto"))
            progress.message(f"exported to {run.config.run_dir / 'export'}")
    return finished


def ready_shards(config: Config, *, runtime: Runtime, held: ExitStack, report: Callable[[str], None]) -> list[Path]:
    """Each source's folder of shards on this host, made first from raw text; collective.

    `held` then holds the run folder for this job. UserError where the layout is impossible.
    """

    def prepare() -> list[Path]:
        held.enter_context(sole_owner(config.run_dir))
        return shard_folders(config, report=report)

    plan_layout(config, runtime=runtime)  # refused now rather than after hours of preparing data
    return _on_this_host(config, on_main(runtime, prepare))


def _train(run: PretrainingRun) -> bool:
    """Train to the end, True, or until told to stop, False."""
    is_main, rank = run.runtime.is_main, run.runtime.topology.rank
    with (
        StallWatch(run.config.run_dir, rank=rank, minutes=run.config.train.stall_minutes) as watch,
        Preemption(run.runtime) as preemption,
        ProgressReporter(run.config.train.steps, start_step=run.state.step, is_main=is_main) as progress,
        MetricsWriter(
            run.config.run_dir,
            is_main=is_main,
            resume_step=run.state.step,
            layer_norms=run.config.train.log_layer_norms,
        ) as metrics,
    ):

        def poll() -> None:
            watch.beat()
            preemption.poll()

        try:
            Trainer(run, metrics=metrics, progress=progress, poll=poll).train()
        except StoppedEarly:
            return False
        finally:
            run.loader.close()
    return True


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
    tokenizer = load_tokenizer(shards, load_manifest(shards))
    copy_tokenizer(tokenizer, folder=run_dir / "tokenizer")
