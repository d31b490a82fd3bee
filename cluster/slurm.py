"""Talking to SLURM: what it could run, handing it a job, and asking after one."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import time
from collections.abc import Sequence
from pathlib import Path

from cluster.job import JobSpec
from cluster.launch import Launch, first_line
from cluster.sbatch import SlurmOptions, logs_dir
from trainer.errors import UserError

JOBS_FILE = "jobs.jsonl"
_TIMEOUT_S = 60.0
_TIME = re.compile(r"\d+|\d+:\d\d(:\d\d)?|\d+-\d+(:\d\d){0,2}", re.ASCII)


def check_options(options: SlurmOptions) -> None:
    """Raise UserError for a time, a partition or a count that SLURM would not understand."""
    if not _TIME.fullmatch(options.time) or not re.search(r"[1-9]", options.time):
        raise UserError(f"--time {options.time}: not a time as SLURM writes it: MINUTES, H:MM:SS or DAYS-HH:MM:SS")
    if options.partition is not None and not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]*", options.partition):
        raise UserError(f"--partition {options.partition!r}: not the name of a partition; `sinfo` lists them")
    for name in ("nodes", "gpus_per_node", "continuations"):
        if getattr(options, name) < 1:
            raise UserError(f"--{name.replace('_', '-')} {getattr(options, name)} must be at least 1")
    if options.restarts is not None and options.restarts < 0:
        raise UserError(f"--restarts {options.restarts} must be at least 0")


def check_cluster(spec: JobSpec, options: SlurmOptions) -> None:
    """Raise UserError where there is no SLURM here, no such partition, or too few nodes in it."""
    if shutil.which("sbatch") is None:
        raise UserError(
            "sbatch is not on the PATH, so there is no SLURM here; run this on a login node, or use --dry-run to see "
            "the script"
        )
    nodes: dict[str, int] = {}
    default = None
    for line in _ask("sinfo", "--noheader", "--format=%P %D").splitlines():
        name, count = line.split()
        if name.endswith("*"):
            name = default = name[:-1]
        nodes[name] = nodes.get(name, 0) + int(count)
    wanted = options.partition or spec.profile.partition or default
    if wanted is None:
        raise UserError(f"SLURM has no default partition; add --partition, one of {', '.join(sorted(nodes))}")
    if wanted not in nodes:
        raise UserError(f"SLURM has no partition {wanted}; there are {', '.join(sorted(nodes))}")
    if options.nodes > nodes[wanted]:
        raise UserError(f"--nodes {options.nodes}, but partition {wanted} has {nodes[wanted]}; ask for fewer")


def submit(launch: Launch, *, run_dir: Path) -> str:
    """Hand a job to SLURM and note it in the run folder; gives the job's id."""
    launch.write_files()
    logs_dir(run_dir).mkdir(parents=True, exist_ok=True)
    job_id = _ask(*launch.argv).strip().partition(";")[0]
    with (run_dir / JOBS_FILE).open("a", encoding="utf-8") as file:
        file.write(json.dumps({"job_id": job_id, "submitted_s": time.time()}) + "\n")
    return job_id


def last_job(run_dir: Path) -> str:
    """The id of the job last submitted for a run; UserError where there was none."""
    path = run_dir / JOBS_FILE
    if not path.is_file():
        raise UserError(f"{run_dir} has no job that `python -m cluster slurm` submitted ({JOBS_FILE} is absent)")
    last = path.read_text(encoding="utf-8", errors="replace").splitlines()[-1:]
    # It is given to SLURM's commands, where a leading dash would be an option.
    match = re.fullmatch(r'\{"job_id": "([0-9]+)".*\}', last[0]) if last else None
    if match is None:
        raise UserError(f"{path}: the last line names no job; `squeue --me` and `scontrol show job` tell of what runs")
    return match[1]


def job_status(job_id: str) -> str:
    """What SLURM knows of a job, in one line a job or array element: the queue, else accounting, else the controller.

    UserError when none of them knows it any more.
    """
    if queued := _queued(job_id, columns="%i %T %M of %l, %D node(s) %R"):
        return queued
    columns = ["--format=JobID,State,ExitCode,Elapsed", "--allocations", "--noheader", "--parsable2"]
    accounted = _try("sacct", f"--jobs={job_id}", *columns)
    if accounted:
        return accounted.replace("|", " ")
    told = _try("scontrol", "--oneliner", "show", "job", job_id)
    if told:
        wanted = ("JobId", "JobState", "ExitCode", "RunTime", "NodeList")
        lines = [dict(part.partition("=")[::2] for part in line.split()) for line in told.splitlines()]
        return "\n".join(" ".join(f"{key}={fields[key]}" for key in wanted if key in fields) for fields in lines)
    raise UserError(f"job {job_id} is gone: SLURM knows it no more; its logs stay in the run folder")


def cancel_job(job_id: str) -> None:
    """End a job, its steps and what waits of its array; UserError when SLURM knows no such job."""
    if not _queued(job_id, columns="%i"):
        raise UserError(f"job {job_id} is not queued or running: there is nothing to cancel")
    _ask("scancel", job_id)


def rank_log(run_dir: Path, *, rank: int) -> Path:
    """A rank's newest log; UserError naming what there is."""
    found = sorted(logs_dir(run_dir).glob(f"*/rank-{rank}.log"), key=_changed)
    if not found:
        there = ", ".join(sorted({path.name for path in logs_dir(run_dir).glob("*/rank-*.log")}))
        raise UserError(f"{logs_dir(run_dir)} has no log of rank {rank}; there are {there or 'none yet'}")
    return found[-1]


def batch_log(run_dir: Path) -> Path:
    """The newest log of a batch script; UserError where there is none."""
    found = sorted(logs_dir(run_dir).glob("batch-*.log"), key=_changed)
    if not found:
        raise UserError(f"{logs_dir(run_dir)} has no log of a batch script yet; `cluster status` tells why")
    return found[-1]


def rank_errors(run_dir: Path) -> list[str]:
    """`rank N: error: ...` for the errors in the newest logs: a mistake of all ranks is told by only one of them."""
    logs = sorted(logs_dir(run_dir).glob("*/rank-*.log"), key=_changed)
    newest = [path for path in logs if path.parent == logs[-1].parent]
    return [
        f"{path.stem.replace('-', ' ')}: {line}"
        for path in newest
        for line in path.read_text(encoding="utf-8", errors="replace").splitlines()
        if line.startswith("error: ")
    ]


def _changed(path: Path) -> int:
    return path.stat().st_mtime_ns


def _queued(job_id: str, *, columns: str) -> str:
    """What the queue says of a job, empty where it is not in it; UserError where there is no SLURM to ask."""
    done = _run(["squeue", "--noheader", f"--jobs={job_id}", f"--format={columns}"])
    if done is None or (done.returncode and "Invalid job id" not in done.stderr):
        raise UserError(f"squeue: {first_line([done.stderr]) if done else 'not on the PATH; run this on a login node'}")
    return done.stdout.strip()


def _ask(*argv: str) -> str:
    """What a command of SLURM's says; UserError with its first line when it fails."""
    done = _run(argv)
    if done is None or done.returncode:
        said = first_line([done.stderr, done.stdout]) if done else "not on the PATH"
        raise UserError(f"{argv[0]}: {said}")
    return done.stdout


def _try(*argv: str) -> str | None:
    """What a command of SLURM's says; None when it is absent or fails."""
    done = _run(argv)
    return done.stdout.strip() if done is not None and done.returncode == 0 else None


def _run(argv: Sequence[str]) -> subprocess.CompletedProcess[str] | None:
    try:
        return subprocess.run(
            argv, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=_TIMEOUT_S, check=False
        )
    except FileNotFoundError:
        return None
    except subprocess.TimeoutExpired:
        raise UserError(f"{argv[0]} does not answer within {_TIMEOUT_S:.0f} s; is SLURM's controller up?") from None
