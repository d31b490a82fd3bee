"""Ranks that meet, wait for each other and end together; several ranks are real processes."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from datetime import timedelta
from pathlib import Path

import pytest
import torch
from command_line import ROOT, Commands, Finished

from trainer.errors import UserError
from trainer.runtime import started
from trainer.topology import Topology

PROGRAM = """\
import os, sys, time
import torch
import torch.distributed as dist
from pathlib import Path
from trainer.errors import UserError, run_command
from trainer.runtime import on_main, started
from trainer.topology import topology_from_env

def body(runtime):
{body}

def main():
    topology = topology_from_env(os.environ)
    rank = topology.rank
    with started(topology, deterministic=False) as runtime:
        body(runtime)
    print("left in order", flush=True)
    return 0

sys.exit(run_command(main))
"""


def write_program(folder: Path, body: str) -> Path:
    program = folder / "program.py"
    program.write_text(PROGRAM.format(body="\n".join(f"    {line}" for line in body.splitlines())), encoding="utf-8")
    return program


def run_alone(commands: Commands, folder: Path, body: str, **env: str) -> Finished:
    """A process that no launcher started, running `body`."""
    return commands.wait(commands.start(cwd=folder, program=write_program(folder, body), env=env))


def run_ranks(commands: Commands, folder: Path, body: str, *, ranks: int = 2) -> tuple[list[int], str, str]:
    """Exit codes, standard outputs and error outputs of ranks that run `body`; must be over well before a timeout."""
    before = time.monotonic()
    ended = commands.run_ranks(cwd=folder, ranks=ranks, program=write_program(folder, body))
    assert time.monotonic() - before < 30
    return [done.code for done in ended], "".join(done.out for done in ended), "".join(done.err for done in ended)


def test_a_process_alone_meets_itself(commands: Commands, tmp_path: Path) -> None:
    body = """\
print(runtime.is_main, runtime.backend, runtime.device_name, on_main(runtime, lambda: 7))
total = torch.ones(2)
dist.all_reduce(total)
print(total.tolist())"""
    assert run_alone(commands, tmp_path, body) == (0, "True gloo cpu 7\n[1.0, 1.0]\nleft in order\n", "")


def test_a_mistake_of_a_process_alone_is_one_line(commands: Commands, tmp_path: Path) -> None:
    assert run_alone(commands, tmp_path, "raise UserError('wrong')") == (2, "", "error: wrong\n")


def test_a_programmers_mistake_in_a_process_alone_keeps_its_traceback(commands: Commands, tmp_path: Path) -> None:
    done = run_alone(commands, tmp_path, "raise KeyError('a bug')")
    assert (done.code, done.err.count("Traceback")) == (1, 1)


def test_the_number_of_threads_is_the_users_or_all_cores(commands: Commands, tmp_path: Path) -> None:
    cores = len(os.sched_getaffinity(0))
    body = "print(runtime.threads, torch.get_num_threads())"
    assert run_alone(commands, tmp_path, body).out.startswith("1 1\n")
    body = "print(runtime.threads, torch.get_num_threads())"
    unset = "import os\nos.environ.pop('OMP_NUM_THREADS')\n"
    program = write_program(tmp_path, body)
    program.write_text(unset + program.read_text())
    done = commands.wait(commands.start(cwd=tmp_path, program=program))
    assert done.out.startswith(f"{cores} {cores}\n")


def test_fewer_processes_than_promised_are_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("trainer.runtime.COLLECTIVE_TIMEOUT", timedelta(seconds=1))
    monkeypatch.setenv("MASTER_ADDR", "127.0.0.1")
    monkeypatch.setenv("MASTER_PORT", "0")
    place = {"RANK": "0", "WORLD_SIZE": "2", "LOCAL_RANK": "0", "LOCAL_WORLD_SIZE": "2"}
    for name, value in place.items():
        monkeypatch.setenv(name, value)
    alone_of_two = Topology(rank=0, local_rank=0, world_size=2, local_world_size=2)
    with (
        pytest.raises(UserError, match=r"rank 0 did not meet all 2 processes at MASTER_ADDR=127\.0\.0\.1, .*1/2"),
        started(alone_of_two, deterministic=False),
    ):
        pass


def test_what_rank_0_decides_reaches_all_ranks_in_turn(commands: Commands, tmp_path: Path) -> None:
    codes, out, err = run_ranks(
        commands,
        tmp_path,
        """\
calls = []
for value in (Path("a"), None, Path("b")):
    got = on_main(runtime, lambda: calls.append(1) or (time.sleep(0.3), value)[1])
    print(f"{runtime.topology.rank} got {got}", flush=True)
print(f"{runtime.topology.rank} was asked {len(calls)} times", flush=True)""",
        ranks=3,
    )
    assert (codes, err) == ([0, 0, 0], "")
    for rank in range(3):
        assert f"{rank} got a\n{rank} got None\n{rank} got b\n" in out
        assert f"{rank} was asked {3 if rank == 0 else 0} times" in out


@pytest.mark.parametrize("rank", [0, 1])
@pytest.mark.parametrize(
    "waiting", ["dist.all_reduce(torch.ones(1))", "time.sleep(60)", "on_main(runtime, lambda: time.sleep(60))"]
)
def test_the_failure_of_one_rank_is_printed_once_and_ends_the_others_whatever_they_wait_for(
    commands: Commands, tmp_path: Path, rank: int, waiting: str
) -> None:
    body = f"if runtime.topology.rank == {rank}: raise UserError('rank {rank} is wrong')\n{waiting}"
    codes, out, err = run_ranks(commands, tmp_path, body)
    assert (codes, out, err) == ([2, 2], "", f"error: rank {rank} is wrong\n")


def test_a_failure_of_all_ranks_is_printed_once(commands: Commands, tmp_path: Path) -> None:
    codes, _, err = run_ranks(commands, tmp_path, "raise UserError('all are wrong')", ranks=3)
    assert (codes, err) == ([2, 2, 2], "error: all are wrong\n")


def test_a_programmers_mistake_shows_one_traceback_and_ends_all_ranks_with_1(
    commands: Commands, tmp_path: Path
) -> None:
    body = "if runtime.topology.rank == 1: raise KeyError('a bug')\ndist.all_reduce(torch.ones(1))"
    codes, _, err = run_ranks(commands, tmp_path, body)
    assert codes == [1, 1]
    assert err.count("Traceback") == 1
    assert err.endswith("KeyError: 'a bug'\n")


def test_a_rank_that_is_killed_leaves_no_other_waiting(commands: Commands, tmp_path: Path) -> None:
    body = "if runtime.topology.rank == 1: os.kill(os.getpid(), 9)\ndist.all_reduce(torch.ones(1))"
    codes, _, told = run_ranks(commands, tmp_path, body)
    assert codes == [69, -9]
    assert "error: another process of this job ended without a word" in told
    assert "Traceback" not in told


def test_more_processes_than_gpus_are_refused_on_every_rank_alike(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    for rank in range(2):
        topology = Topology(rank=rank, local_rank=rank, world_size=2, local_world_size=2)
        with (
            pytest.raises(UserError, match=r"2 processes were started on a host that shows 1 GPU\(s\)"),
            started(topology, deterministic=False),
        ):
            pass


def test_what_a_started_process_takes_is_measured_without_a_word():
    environment = {name: value for name, value in os.environ.items() if name != "DS_ACCELERATOR"}
    body = "from trainer.runtime import started_process_bytes; print(started_process_bytes() > 2**28)"
    done = subprocess.run([sys.executable, "-c", body], cwd=ROOT, env=environment, capture_output=True, text=True)
    assert (done.stdout, done.stderr) == ("True\n", "")
