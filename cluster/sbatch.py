"""The batch script of a SLURM job: srun starts every rank, so that no node needs ssh."""

from __future__ import annotations

import shlex
import sys
from dataclasses import dataclass
from pathlib import Path

from cluster.job import JobSpec
from cluster.launch import Launch
from cluster.launchers import in_apptainer, in_pyxis
from trainer.config import fingerprint
from trainer.errors import REQUEUE_EXIT_CODE, UserError
from trainer.ranks import FIRST_PORT, PORTS

# How long the first task to end waits for the others, which end by themselves, before SLURM kills them.
_LAST_TASKS_S = 60


@dataclass(frozen=True)
class SlurmOptions:
    """What is asked of SLURM. continuations: jobs one after the other, each going on from the last one's save.

    restarts: how often faults are mended inside the job (cluster.supervisor), None to end with the first. preflight:
    whether the nodes are looked at first.
    """

    nodes: int
    gpus_per_node: int
    time: str
    partition: str | None = None
    continuations: int = 1
    restarts: int | None = None
    preflight: bool = False


def logs_dir(run_dir: Path) -> Path:
    """Where jobs write: batch-JOB.log, and JOB/rank-N.log for every rank."""
    return run_dir / "logs"


def sbatch_launch(spec: JobSpec, options: SlurmOptions, *, script: Path) -> Launch:
    """The sbatch command with its script.

    Paths stand on the command line: #SBATCH lines quote in a way of their own.
    """
    name = "batch-%A_%a.log" if options.continuations > 1 else "batch-%j.log"
    output = f"{_as_pattern(logs_dir(spec.run_dir))}/{name}"
    argv = ("sbatch", "--parsable", "--chdir", str(spec.workdir), "--output", output, str(script))
    return Launch(argv, files={script: sbatch_text(spec, options)})


def sbatch_text(spec: JobSpec, options: SlurmOptions) -> str:
    """The whole script."""
    lines = ["#!/bin/bash", *(f"#SBATCH {directive}" for directive in _directives(spec, options)), ""]
    # The shell must outlive the signals that tell the ranks to save.
    lines += ["trap : TERM USR2"]
    if spec.profile.modules:
        lines += [f"module load {shlex.join(spec.profile.modules)} || exit 2"]
    lines += [f"export {name}={shlex.quote(value)}" for name, value in spec.profile.environment.items()]
    lines += [
        *([f"export OMP_NUM_THREADS={spec.profile.cpus_per_task}"] if spec.profile.cpus_per_task else []),
        'export MASTER_ADDR=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)',
        f"export MASTER_PORT=$(({FIRST_PORT} + SLURM_JOB_ID % {PORTS}))",
        f'logs={shlex.quote(str(logs_dir(spec.run_dir)))}/"$SLURM_JOB_ID"',
        'mkdir -p "$logs" || exit 2',
        *_outside_check(spec, options),
        *_staging(spec, options),
        "",
        *([f"{_on_first_node(spec, 'preflight', options)} || exit 2"] if options.preflight else []),
        _srun(spec, options) if options.restarts is None else _supervised(spec, options),
        "code=$?",
        *_ending(options),
        'exit "$code"',
    ]
    return "\n".join(lines) + "\n"


def _directives(spec: JobSpec, options: SlurmOptions) -> list[str]:
    profile = spec.profile
    # The job must live on when a node is gone.
    survive = [] if options.restarts is None else ["--no-kill"]
    asked = {
        "--job-name": spec.config.name,
        "--nodes": options.nodes,
        "--ntasks-per-node": options.gpus_per_node,
        "--gpus-per-node": options.gpus_per_node if profile.device == "gpu" else None,
        "--cpus-per-task": profile.cpus_per_task,
        "--time": options.time,
        "--partition": options.partition or profile.partition,
        "--account": profile.account,
        "--qos": profile.qos,
        # Without a B: it goes to the ranks, not to this shell. USR1 may be taken by NCCL.
        "--signal": f"USR2@{profile.grace_s}",
        "--open-mode": "append",
        "--array": f"1-{options.continuations}%1" if options.continuations > 1 else None,
    }
    return [
        *(f"{name}={value}" for name, value in asked.items() if value is not None),
        "--requeue",
        *survive,
        *profile.sbatch,
    ]


def _srun(spec: JobSpec, options: SlurmOptions) -> str:
    profile = spec.profile
    parts = [
        "srun",
        f"--nodes={options.nodes}",
        f"--ntasks-per-node={options.gpus_per_node}",
        *([f"--cpus-per-task={profile.cpus_per_task}"] if profile.cpus_per_task else []),
        "--cpu-bind=cores",
        # Every rank sees its node's GPUs and takes the one of its local rank: peers reach each other directly.
        *(["--gpu-bind=none"] if profile.device == "gpu" else []),
        f"--wait={_LAST_TASKS_S}",
        "--open-mode=append",
    ]
    parts += in_pyxis(spec)
    command = [*in_apptainer(spec), spec.python, "-u", "-m", *spec.trainer_arguments, *scratch_settings(spec)]
    output = f'--output={shlex.quote(_as_pattern(logs_dir(spec.run_dir)))}/"$SLURM_JOB_ID"/rank-%t.log'
    return f"{shlex.join(parts)} {output} \\\n  {shlex.join(command)}"


def _supervised(spec: JobSpec, options: SlurmOptions) -> str:
    """The supervisor, which starts the ranks through one agent a node."""
    return f"{_on_first_node(spec, 'supervise', options)} --restarts {options.restarts} --no-check --no-preflight"


def _on_first_node(spec: JobSpec, command: str, options: SlurmOptions) -> str:
    """A command of ours that runs beside this shell, on the nodes of the job.

    It starts srun, which a container lacks: there it runs outside, on the interpreter that runs this, and only the
    programs that it starts on the nodes run inside.
    """
    profile = ["--profile", spec.profile_source] if spec.profile_source else []
    settings = [part for override in spec.overrides for part in ("--set", override)]
    asked = ["--slurm", "--procs", str(options.gpus_per_node), *profile, *settings, *scratch_settings(spec)]
    return shlex.join([_outside(spec), "-u", "-m", "cluster", command, spec.recipe, *asked])


def _outside(spec: JobSpec) -> str:
    """The interpreter beside the batch shell."""
    return spec.python if spec.profile.container is None else sys.executable


def _outside_check(spec: JobSpec, options: SlurmOptions) -> list[str]:
    """The line that ends the job where a container's host cannot run what `_on_first_node` needs."""
    if spec.profile.container is None or (options.restarts is None and not options.preflight):
        return []
    said = (
        f"error: this node has no {_outside(spec)} with the project, which --restarts and --preflight run outside the "
        "container; leave them out, or submit from an environment that the nodes share"
    )
    imported = shlex.join([_outside(spec), "-c", "import cluster.__main__"])
    return [f"{imported} || {{ echo {shlex.quote(said)} >&2; exit 2; }}"]


def scratch_settings(spec: JobSpec) -> list[str]:
    """The settings that make the trainer read from the nodes' scratch; UserError where it could not.

    Shards on the network come through the trainer's own cache; a folder of shards is copied first.
    """
    scratch, data = spec.profile.scratch, spec.config.data
    if scratch is None:
        return []
    if data.has_remote_shards:
        return ["--set", f"data.cache.folder={scratch}/{spec.config.name}"]
    if data.shards is None:
        raise UserError(
            f"the profile's scratch={scratch} takes ready shards, on the network or in data.shards; build once "
            "(python -m data_pipeline build) and name them, or use a profile without scratch"
        )
    return ["--set", f"data.shards={_scratch_copy(spec, data.shards)}"]


def _scratch_copy(spec: JobSpec, shards: str) -> str:
    return f"{spec.profile.scratch}/shards-{fingerprint(str(spec.workdir / shards))[:12]}"


def _staging(spec: JobSpec, options: SlurmOptions) -> list[str]:
    """Copy a folder of shards to every node's scratch, only what is newer."""
    shards = spec.config.data.shards
    if spec.profile.scratch is None or shards is None or spec.config.data.has_remote_shards:
        return []
    target, source = shlex.quote(_scratch_copy(spec, shards)), shlex.quote(f"{spec.workdir / shards}/.")
    once_a_node = f"srun --nodes={options.nodes} --ntasks={options.nodes} --ntasks-per-node=1"
    return [f"{once_a_node} mkdir -p {target} || exit 2", f"{once_a_node} cp -Ru {source} {target} || exit 2"]


def _ending(options: SlurmOptions) -> list[str]:
    """What follows from the exit code: a run that was told to stop and has saved goes on in the next job."""
    if options.continuations == 1:
        # Not where it is ending already, cancelled (it would come back) or being requeued by SLURM itself.
        state = '"$(squeue --noheader --jobs="$SLURM_JOB_ID" --format=%t)"'
        condition = f'[ "$code" -eq {REQUEUE_EXIT_CODE} ] && [ {state} = R ]'
        return [f'if {condition}; then scontrol requeue "$SLURM_JOB_ID"; fi']
    # Done, or a mistake that every later one would make again.
    return ['case $code in 0|2) scancel --state=PENDING "$SLURM_ARRAY_JOB_ID";; esac']


def _as_pattern(path: Path) -> str:
    """A path in a pattern of SLURM's, which reads % as the start of a field."""
    if "\\" in str(path):
        raise UserError(f"the run folder {path} holds a backslash, which SLURM reads in names of outputs; rename it")
    return str(path).replace("%", "%%")
