"""The supervisor with real agents on this host and ranks that do as a test says, instead of training."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

import cluster.attempt
import cluster.supervisor
from cluster.hostfile import Host
from cluster.job import JobSpec, describe_job
from cluster.supervisor import Supervisor, furthest_step, largest_layout
from trainer.errors import UserError

ROOT = Path(__file__).resolve().parents[2]
AGENT = [sys.executable, "-m", "cluster.agent"]
RECIPE = """\
name: small
data: {shards: shards, max_seq_len: 32}
train: {steps: 4, global_batch_size: 12, micro_batch_size: 1}
"""
RANK = f"""\
#!{sys.executable}
import json, os, signal, sys, time
from pathlib import Path
rank, world = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
attempt = len(list(Path("runs/small/logs").glob("attempt-*")))
def step(number):
    with Path("runs/small/metrics.jsonl").open("a") as file:
        file.write(json.dumps({{"step": number}}) + "\\n")
"""


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    monkeypatch.setattr(cluster.attempt, "_LAST_WORDS_S", 0.5)
    monkeypatch.setattr(cluster.supervisor, "_LONGEST_PAUSE_S", 0.0)
    (tmp_path / "recipe.yaml").write_text(RECIPE)
    (tmp_path / "site.yaml").write_text(f"python: {tmp_path / 'rank'}\n")
    handlers = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGUSR2)}
    yield tmp_path
    for number, handler in handlers.items():
        signal.signal(number, handler)


def spec_of(*, slots: int, body: str = "") -> JobSpec:
    rank = Path("rank")
    rank.write_text(RANK + body)
    rank.chmod(0o755)
    return describe_job("recipe.yaml", overrides=[], profile="site.yaml", processes=[slots], workdir=Path.cwd())


def supervise(
    body: str, *, hosts: tuple[Host, ...] = (Host("a", 2),), connect: Callable[[str], list[str]] | None = None
) -> tuple[int, list[dict[str, Any]]]:
    """Exit code and events of a run whose ranks do `body`."""
    spec = spec_of(slots=sum(host.slots for host in hosts), body=body)
    connect = connect or (lambda host: AGENT)
    code = Supervisor(spec, hosts, connect=connect, restarts=2, report=print).run()
    return code, [json.loads(line) for line in Path("runs/small/events.jsonl").read_text().splitlines()]


def named(events: list[dict[str, Any]]) -> list[str]:
    return [event["event"] for event in events]


def test_ranks_get_their_places_and_a_log_each() -> None:
    body = "names = ('RANK', 'WORLD_SIZE', 'LOCAL_RANK', 'LOCAL_WORLD_SIZE', 'MASTER_ADDR')\n"
    body += "print(*[os.environ[name] for name in names], *sys.argv[1:5])"
    code, events = supervise(body, hosts=(Host("a", 1), Host("b", 2)))
    assert (code, named(events)) == (0, ["start", "end"])
    logs = Path("runs/small/logs/attempt-0001")
    told = {path.name: path.read_text() for path in logs.iterdir()}
    assert told == {
        "rank-0.log": "0 3 0 1 a -u -m trainer pretrain\n",
        "rank-1.log": "1 3 0 2 a -u -m trainer pretrain\n",
        "rank-2.log": "2 3 1 2 a -u -m trainer pretrain\n",
    }


def test_a_killed_rank_ends_all_and_they_start_again() -> None:
    body = "if attempt == 1 and rank == 1: step(1); os.kill(os.getpid(), 9)\nif attempt == 1: time.sleep(60)"
    code, events = supervise(body)
    assert (code, named(events)) == (0, ["start", "fault", "restart", "start", "end"])
    assert (events[1]["why"], events[1]["code"]) == ("rank 1 on a was killed by signal 9", 137)
    assert events[2]["step"] == 1


def test_the_killed_rank_is_named_even_when_another_was_first_to_end() -> None:
    body = (
        "if attempt == 1 and rank == 1: time.sleep(0.3); os.kill(os.getpid(), 9)\nsys.exit(69 if attempt == 1 else 0)"
    )
    code, events = supervise(body)
    assert (code, events[1]["why"]) == (0, "rank 1 on a was killed by signal 9")


def test_a_mistake_of_all_ranks_is_not_tried_again() -> None:
    # All ranks meet it, one tells of it.
    body = "if rank == 1: print('error: no such shards')\nprint('another line'); sys.exit(2)"
    code, events = supervise(body)
    assert (code, named(events)) == (2, ["start", "end"])
    assert events[1]["why"] == "all ranks refused: no such shards"


def test_ranks_that_lost_each_other_without_a_death_start_again() -> None:
    code, events = supervise("sys.exit(69 if attempt == 1 else 0)")
    assert (code, named(events)) == (0, ["start", "fault", "restart", "start", "end"])


def test_it_gives_up_when_attempts_in_a_row_bring_no_new_step() -> None:
    # The second brings one; what is computed again is nothing new.
    body = "if rank == 0: step(1 if attempt < 2 else 2)\ntime.sleep(0.2); sys.exit(1)"
    code, events = supervise(body)
    assert code == 1
    assert named(events).count("start") == 5
    assert events[-1]["event"] == "give up"
    assert events[-1]["why"] == "3 attempts in a row brought no step after step 2"


def test_pauses_grow_while_nothing_moves(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cluster.supervisor, "_LONGEST_PAUSE_S", 0.02)
    _, events = supervise("sys.exit(1)")
    assert [event["pause_s"] for event in events if event["event"] == "restart"] == [0.02, 0.02]


def test_told_to_stop_it_tells_the_ranks_and_ends_with_their_code() -> None:
    body = "signal.signal(signal.SIGTERM, lambda *_: sys.exit(75)); Path(f'ready-{rank}').touch(); time.sleep(60)"

    def tell() -> None:
        while not (Path("ready-0").exists() and Path("ready-1").exists()):
            time.sleep(0.05)
        os.kill(os.getpid(), signal.SIGTERM)

    teller = threading.Thread(target=tell)
    teller.start()
    code, events = supervise(body)
    teller.join()
    assert (code, named(events)) == (75, ["start", "end"])


def test_a_run_outlives_the_reader_of_its_lines_and_its_exit_code_stays_true() -> None:
    spec_of(slots=2, body="sys.exit(1 if attempt == 1 else 2)")
    program = f"""
import sys
from pathlib import Path
from cluster.commands.supervise import say
from cluster.hostfile import Host
from cluster.job import describe_job
from cluster.supervisor import Supervisor
spec = describe_job("recipe.yaml", overrides=[], profile="site.yaml", processes=[2], workdir=Path.cwd())
sys.exit(Supervisor(spec, [Host("a", 2)], connect=lambda host: {AGENT}, restarts=2, report=say).run())
"""
    with subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, stderr=subprocess.PIPE) as job:
        assert job.stdout is not None
        assert job.stderr is not None
        job.stdout.close()
        assert job.stderr.read() == b""
    assert job.returncode == 2
    events = [json.loads(line) for line in Path("runs/small/events.jsonl").read_text().splitlines()]
    assert named(events) == ["start", "fault", "restart", "start", "end"]


def test_a_lost_host_is_left_out_and_the_run_goes_on_with_fewer_ranks() -> None:
    asked: list[str] = []

    def connect(host: str) -> list[str]:
        asked.append(host)
        return ["false"] if asked.count("b") > 1 and host == "b" else AGENT

    body = "if attempt == 1 and rank == 2: os.kill(os.getppid(), 9)\nif attempt == 1: time.sleep(60)\nprint(world)"
    code, events = supervise(body, hosts=(Host("a", 2), Host("b", 1)), connect=connect)
    assert (code, named(events)) == (0, ["start", "fault", "restart", "start", "end"])
    assert events[1]["why"] == "lost b"
    assert [event["world_size"] for event in events if event["event"] == "start"] == [3, 2]
    assert Path("runs/small/logs/attempt-0002/rank-0.log").read_text() == "2\n"


def test_what_a_login_shell_prints_first_is_passed_over() -> None:
    agent = "exec " + " ".join(AGENT)
    code, events = supervise("", connect=lambda host: ["sh", "-c", f"echo Welcome; echo 7; echo []; {agent}"])
    assert (code, named(events)) == (0, ["start", "end"])


def test_agents_that_answer_are_kept_while_a_slow_one_is_waited_for() -> None:
    quick = "import cluster.agent as agent; agent.SILENCE_S = 1.0; agent.Agent().run()"
    slow = f"import time; time.sleep(2); {quick}"
    argv = {host: [sys.executable, "-c", program] for host, program in (("a", quick), ("b", slow))}
    code, events = supervise("", hosts=(Host("a", 1), Host("b", 1)), connect=argv.__getitem__)
    assert (code, events[0]["world_size"]) == (0, 2)


def test_without_any_host_it_gives_up_saying_so() -> None:
    code, events = supervise("", connect=lambda host: ["false"])
    assert code == 1
    assert events[0]["why"] == "0 host(s) answer, with 0 slot(s), and the recipe runs on no such number"
    assert events[-1]["event"] == "give up"


def test_the_largest_number_of_ranks_that_the_recipe_allows_is_taken() -> None:
    spec = spec_of(slots=4)
    assert largest_layout(spec, [Host("a", 2), Host("b", 3)]) == (Host("a", 2), Host("b", 2))
    assert largest_layout(spec, [Host("a", 7)]) == (Host("a", 6),)
    two_stages = describe_job(
        "recipe.yaml", overrides=["parallel.num_stages=2"], profile=None, processes=[2], workdir=Path.cwd()
    )
    assert largest_layout(two_stages, [Host("a", 2), Host("b", 3)]) == (Host("a", 2), Host("b", 2))
    assert largest_layout(two_stages, [Host("a", 3)]) == (Host("a", 2),)
    with pytest.raises(UserError, match=r"0 host\(s\) answer"):
        largest_layout(spec, [])


def test_the_furthest_step_is_the_last_measured_or_saved(folder: Path) -> None:
    assert furthest_step(folder / "run") == 0
    (folder / "run/checkpoints/step-00000030").mkdir(parents=True)
    assert furthest_step(folder / "run") == 30
    (folder / "run/metrics.jsonl").write_text('{"step": 31}\n{"step": 4')
    assert furthest_step(folder / "run") == 31


def start_agent(body: str, *, silence_s: float = 10.0) -> tuple[subprocess.Popen[str], list[int]]:
    """An agent with a rank that has a child; gives the pids of both."""
    spec_of(slots=1, body="import subprocess\nPath('pids').write_text(f'{os.getpid()} ' + str(" + body + ".pid))\n")
    with Path("rank").open("a") as rank:
        rank.write("time.sleep(60)\n")
    program = f"import cluster.agent as agent; agent.SILENCE_S = {silence_s}; agent.Agent().run()"
    agent = subprocess.Popen(
        [sys.executable, "-c", program], stdin=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True
    )
    order = {"argv": ["./rank"], "environments": [{"RANK": "0", "WORLD_SIZE": "1"}], "logs": ["log"]}
    assert agent.stdin is not None
    agent.stdin.write(json.dumps({"start": order}) + "\n")
    agent.stdin.flush()
    pids = Path("pids")
    deadline = time.monotonic() + 10
    while not (pids.exists() and len(pids.read_text().split()) == 2):
        assert time.monotonic() < deadline
        time.sleep(0.02)
    return agent, [int(pid) for pid in pids.read_text().split()]


def alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().split()[2] != "Z"
    except FileNotFoundError:
        return False


def assert_gone(pids: list[int]) -> None:
    deadline = time.monotonic() + 5
    while any(map(alive, pids)):
        assert time.monotonic() < deadline, "a process was left behind"
        time.sleep(0.02)


CHILD = "subprocess.Popen(['sleep', '60'])"


def test_an_agent_whose_supervisor_is_gone_leaves_nothing_behind() -> None:
    agent, pids = start_agent(CHILD)
    assert all(map(alive, pids))
    assert agent.stdin is not None
    agent.stdin.close()
    agent.wait(timeout=10)
    assert_gone(pids)


def test_an_agent_that_is_cut_off_ends_its_ranks_by_itself() -> None:
    agent, pids = start_agent(CHILD, silence_s=1.0)
    agent.wait(timeout=10)
    assert_gone(pids)
    assert agent.stdin is not None
    agent.stdin.close()
