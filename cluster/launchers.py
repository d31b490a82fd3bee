"""The command lines of the launchers that run in the foreground: deepspeed on one host or over ssh, and mpirun."""

from __future__ import annotations

import os
import re
import shlex
import zlib
from pathlib import Path

from cluster.hostfile import Host
from cluster.job import JobSpec
from cluster.launch import Launch
from cluster.profile import Container
from trainer.errors import UserError
from trainer.ranks import job_port

# What a POSIX shell and pdsh leave as it is.
_PLAIN = re.compile(r"[\w@+=:,./-]+", re.ASCII)
_SLURM_SETTINGS = ("partition", "account", "qos", "cpus_per_task", "sbatch", "modules", "scratch")


def local_launch(spec: JobSpec) -> Launch:
    """DeepSpeed's launcher on this host."""
    refuse_slurm_settings(spec, launcher="local", apptainer=False)
    # Without a hostfile of ours it takes /job/hostfile, which some machines have.
    argv = [*_deepspeed(spec), "--hostfile", os.devnull, "--num_gpus", str(spec.world_size)]
    argv += ["--module", "--no_local_rank"]
    return Launch((*argv, *spec.trainer_arguments), environment=spec.profile.environment)


def deepspeed_launch(spec: JobSpec, *, hosts: tuple[Host, ...], hostfile: Path) -> Launch:
    """DeepSpeed's launcher over ssh (pdsh).

    It hands the remote shells its folder and interpreter without quotes, and arguments and variables with half of
    them: what could be executed is refused, or escaped so that it arrives as it is.
    """
    refuse_slurm_settings(spec, launcher="deepspeed", apptainer=False)
    if len({host.slots for host in hosts}) > 1:
        slots = ", ".join(f"{host.name} slots={host.slots}" for host in hosts)
        raise UserError(
            f"{hostfile}: deepspeed numbers the GPUs of a host wrongly where slots differ ({slots}); give all hosts "
            "the same, or use `python -m cluster mpi`"
        )
    inherited = os.environ.get("PYTHONPATH", "")
    for what, text in (("folder", str(spec.workdir)), ("interpreter", spec.python), ("PYTHONPATH", inherited)):
        if text and not _PLAIN.fullmatch(text):
            raise UserError(
                f"deepspeed hands the {what} {text!r} to remote shells without quotes, and it holds blanks or signs "
                "that a shell would read; use another path, or `python -m cluster mpi`"
            )
    variables = {name: _in_double_quotes(value) for name, value in spec.profile.environment.items()}
    listing = spec.run_dir / "deepspeed_env"
    argv = [
        *_deepspeed(spec),
        *("--hostfile", str(hostfile.absolute()), "--master_addr", hosts[0].name),
        *("--no_ssh_check", "--force_multi", "--module", "--no_local_rank"),
        *(_through_remote_shell(argument) for argument in spec.trainer_arguments),
    ]
    return Launch(
        tuple(argv),
        environment={"DS_ENV_FILE": str(listing), **spec.profile.environment},
        files={listing: "".join(f"{name}={value}\n" for name, value in variables.items())},
    )


def mpi_launch(spec: JobSpec, *, hostfile: Path) -> Launch:
    """Open MPI's mpirun, which fills the hosts of the file in order; argv reaches the processes without a shell."""
    refuse_slurm_settings(spec, launcher="mpi", apptainer=True)
    variables = [part for name in spec.profile.environment for part in ("-x", name)]
    if "PYTHONPATH" in os.environ:
        variables += ["-x", "PYTHONPATH"]
    argv = [
        *("mpirun", "-n", str(spec.world_size), "--hostfile", str(hostfile.absolute()), "--map-by", "slot"),
        # Open MPI binds small jobs to one core a process, which would starve a process of several threads.
        *("--bind-to", "none", "--wdir", str(spec.workdir), *variables),
        *in_apptainer(spec),
        *(spec.python, "-m", *spec.trainer_arguments),
    ]
    return Launch(tuple(argv), environment=spec.profile.environment)


def in_apptainer(spec: JobSpec) -> list[str]:
    """`apptainer exec ... IMAGE`, to stand before the interpreter; empty where the profile has no such container."""
    container = spec.profile.container
    if container is None or container.runtime != "apptainer":
        return []
    binds = [part for mount in _mounts(spec, container) for part in ("--bind", mount)]
    gpus = ["--nv"] if spec.profile.device == "gpu" else []
    return ["apptainer", "exec", *gpus, *binds, "--pwd", str(spec.workdir), container.image]


def in_pyxis(spec: JobSpec) -> list[str]:
    """srun's options for the profile's container; empty where the profile has no such container."""
    container = spec.profile.container
    if container is None or container.runtime != "pyxis":
        return []
    mounts = f"--container-mounts={','.join(_mounts(spec, container))}"
    return [f"--container-image={container.image}", mounts, f"--container-workdir={spec.workdir}"]


def _mounts(spec: JobSpec, container: Container) -> list[str]:
    """What is seen inside: working folder and scratch at their own paths, and what the profile asks for."""
    own = [str(spec.workdir), *([spec.profile.scratch] if spec.profile.scratch else [])]
    return [*(f"{folder}:{folder}" for folder in own), *container.mounts]


def _deepspeed(spec: JobSpec) -> list[str]:
    # The run's own port: two runs on the same hosts rarely meet, and a dry run shows the one that is used.
    port = job_port(zlib.crc32(str(spec.run_dir).encode()))
    return [spec.python, "-m", "deepspeed.launcher.runner", "--master_port", str(port)]


def refuse_slurm_settings(spec: JobSpec, *, launcher: str, apptainer: bool) -> None:
    """Raise UserError for what the profile asks for and a launcher, which may know apptainer, would ignore."""
    ignored = [name for name in _SLURM_SETTINGS if getattr(spec.profile, name)]
    container = spec.profile.container
    if container is not None and not (apptainer and container.runtime == "apptainer"):
        ignored.append(f"container.runtime={container.runtime}")
    if ignored:
        raise UserError(
            f"the profile sets {', '.join(ignored)}, which `cluster {launcher}` would ignore; use `cluster slurm`, or "
            "a profile without"
        )


def _in_double_quotes(value: str) -> str:
    """The value as DeepSpeed must be given it: it puts double quotes around any that is not plain."""
    if re.search(r"[\x00-\x1f\x7f%]", value):
        raise UserError(f"the profile's environment value {value!r} cannot go through pdsh; remove % and control signs")
    return re.sub(r'([\\$`"])', r"\\\1", value)


def _through_remote_shell(argument: str) -> str:
    """An argument such that the remote process gets it as it is.

    DeepSpeed puts double quotes around one with blanks, escaping only those within, and sends others bare; pdsh
    replaces %h and its like.
    """
    if re.search(r"[\x00-\x1f\x7f%]", argument):
        raise UserError(f"the argument {argument!r} cannot go through pdsh; remove % and control signs")
    return re.sub(r"([\\$`])", r"\\\1", argument) if " " in argument else shlex.quote(argument)
