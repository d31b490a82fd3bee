"""Starting real training processes for tests, and reading what they leave."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

from trainer.metrics import read_records

ROOT = Path(__file__).resolve().parents[2]
TIMEOUT_S = 240

RECIPE = """
name: run
seed: 5
data:
  shards: {shards}
  max_seq_len: 32
model:
  hidden_size: 32
  num_layers: 2
  num_heads: 2
  intermediate_size: 64
  max_positions: 32
optimizer:
  learning_rate: 2e-3
schedule:
  warmup_steps: 4
train:
  steps: 24
  global_batch_size: 8
  micro_batch_size: 2
  log_every_steps: 1
engine:
  ds_config: zero2
  precision: fp32
evaluation:
  every_steps: 12
  max_rows: 12
checkpoint:
  every_steps: 5
export: false
"""


def write_corpus(path: Path, *, documents: int = 600) -> Path:
    """A text whose words follow each other, so that there is something to learn."""
    generator = random.Random(1)
    words = [f"{first}{second}" for first in "bdklmnprst" for second in ("a", "e", "i", "ol", "urn")]
    lines = []
    for _ in range(documents):
        at = generator.randrange(len(words))
        line = []
        for _ in range(generator.randint(3, 25)):
            line.append(words[at])
            at = (at * 3 + generator.randint(0, 2)) % len(words)
        lines.append(" ".join(line))
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


def trainer_command(*arguments: str, processes: int, launcher: str = "torchrun") -> list[str]:
    """`python -m trainer ARGUMENTS` in so many processes: under torchrun, under deepspeed, or alone."""
    if launcher == "alone":
        return [sys.executable, "-m", "trainer", *arguments]
    if launcher == "deepspeed":
        deepspeed = Path(sys.executable).parent / "deepspeed"
        # Below those that Linux gives to outgoing connections, of which any might hold it by then.
        port = str(random.randint(20000, 32000))
        start = [str(deepspeed), "--num_gpus", str(processes), "--master_port", port, "--module", "trainer"]
        return [*start, *arguments]
    start = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(processes)]
    return [*start, "-m", "trainer", *arguments]


def start(command: list[str], *, cwd: Path) -> subprocess.Popen[str]:
    """Start a job as a process group of its own, one thread a process, its output kept."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT), "DS_ACCELERATOR": "cpu"}
    environment["PATH"] = f"{Path(sys.executable).parent}{os.pathsep}{environment['PATH']}"
    return subprocess.Popen(
        command,
        cwd=cwd,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )


def run(command: list[str], *, cwd: Path, expect: int = 0, timeout_s: float = TIMEOUT_S) -> str:
    """Run a job to its end; its output when the exit code is as expected."""
    job = start(command, cwd=cwd)
    try:
        output, _ = job.communicate(timeout=timeout_s)
    finally:
        kill_group(job)
    assert job.returncode == expect, f"exit code {job.returncode}:\n{output}"
    return output


def kill_group(job: subprocess.Popen[str]) -> None:
    """SIGKILL everything the job started, as a power cut would."""
    try:
        os.killpg(job.pid, signal.SIGKILL)
    except ProcessLookupError:
        return
    job.wait()


def kill_at_step(command: list[str], *, cwd: Path, metrics: Path, step: int) -> int:
    """Start a job, kill it once `step` is in its metrics, and give the last step it had written."""
    job = start(command, cwd=cwd)
    deadline = time.monotonic() + TIMEOUT_S
    try:
        while time.monotonic() < deadline and job.poll() is None:
            if metrics.exists() and last_step(metrics) >= step:
                break
            time.sleep(0.02)
    finally:
        kill_group(job)
    output = job.stdout.read() if job.stdout else ""
    assert metrics.exists(), output
    return last_step(metrics)


def last_step(metrics: Path) -> int:
    """The last whole record's step, 0 when there is none."""
    records = read_records(metrics)
    return records[-1]["step"] if records else 0


def losses(metrics: Path) -> dict[int, float]:
    """Training loss by step; fails if a step stands there twice."""
    records = [record for record in read_records(metrics) if "train/loss" in record]
    found = {record["step"]: record["train/loss"] for record in records}
    assert len(found) == len(records), "a step was written twice"
    return found
