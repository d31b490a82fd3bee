"""What the preflight finds, on made-up hosts and on this one under two names."""

from __future__ import annotations

import copy
import socket
import sys
from pathlib import Path
from typing import Any

import pytest

from cluster.hostfile import Host
from cluster.job import JobSpec, describe_job
from cluster.look import look, unreached
from cluster.preflight import checkpoint_bytes, compare, preflight
from trainer.config import Config, ModelConfig
from trainer.errors import UserError
from trainer.recipe import load_recipe

GOOD = {
    "same": {"Python": "3.11.2", "the code": "abc", "/shards/manifest.json": "123"},
    "sees": True,
    "free_bytes": 10 * 2**30,
    "clock_off_s": 0.1,
    "unreached": [],
}
LOOK = [sys.executable, "-m", "cluster.look"]
AGENT = [sys.executable, "-m", "cluster.agent"]
RECIPE = """\
name: small
data: {shards: shards, max_seq_len: 32}
model: {hidden_size: 32, num_layers: 1, num_heads: 2, intermediate_size: 64}
train: {steps: 4, global_batch_size: 4, micro_batch_size: 1}
"""


def faults(**changed: Any) -> list[str]:
    """What is found where node2, of three hosts, differs from a good one."""
    looks: dict[str, Any] = {name: copy.deepcopy(GOOD) for name in ("node1", "node2", "node3")}
    looks["node2"]["same"] |= changed.pop("same", {})
    looks["node2"] |= changed
    return compare(looks, needed_bytes=2**30)


def test_good_hosts_have_no_faults() -> None:
    assert faults() == []


@pytest.mark.parametrize(
    ("changed", "fault"),
    [
        ({"same": {"the code": "xyz"}}, "node2 has the code xyz, where others have abc"),
        (
            {"same": {"/shards/manifest.json": "absent"}},
            "node2 has /shards/manifest.json absent, where others have 123",
        ),
        ({"sees": False}, "node2 does not see the run folder; put it on a file system that all hosts share"),
        ({"free_bytes": 2**29}, "node2 has 0.5 GiB free for the run folder, checkpoints need 1.0"),
        ({"clock_off_s": -7.2}, "the clock of node2 is off by -7 s; synchronise it (chrony)"),
        ({"unreached": ["node3"]}, "node2 does not reach node3; open the network between them"),
    ],
)
def test_a_fault_is_told_with_its_host(changed: dict[str, Any], fault: str) -> None:
    assert faults(**changed) == [fault]


def test_data_that_no_host_sees_is_told_once() -> None:
    looks = {name: {**GOOD, "same": {"/shards/manifest.json": "absent"}} for name in ("a", "b")}
    assert compare(looks, needed_bytes=0) == ["no host sees /shards/manifest.json"]


def test_the_disk_must_hold_the_checkpoints_kept_and_two_more(tmp_path: Path) -> None:
    config = load_recipe("bert_base")
    # A BERT-base has about 110 million parameters; two are kept.
    assert 4 * 12 * 105e6 < checkpoint_bytes(config) < 4 * 12 * 115e6
    small = config.model_copy(update={"model": ModelConfig(vocab_size=100, hidden_size=12)})
    assert isinstance(small, Config)
    assert checkpoint_bytes(small) < checkpoint_bytes(config) / 20


def test_a_host_says_what_it_has(tmp_path: Path) -> None:
    (tmp_path / "here").write_text("x")
    order = {
        "same": [str(tmp_path / "here"), str(tmp_path / "gone")],
        "seen": str(tmp_path / "gone"),
        "disk": "/no/way",
    }
    found = look(order)
    assert found["same"][str(tmp_path / "here")] == "2d711642b726"
    assert found["same"][str(tmp_path / "gone")] == "absent"
    assert found["same"]["the package deepspeed"] != "none"
    assert not found["sees"]
    assert found["free_bytes"] > 0
    assert look({**order, "seen": str(tmp_path)})["sees"]


def test_a_port_where_nobody_answers_is_not_reached() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server, socket.create_server(("127.0.0.1", 0)) as closed:
        port = closed.getsockname()[1]
        closed.close()
        assert unreached({"localhost": server.getsockname()[1], "127.0.0.1": port}) == ["127.0.0.1"]


@pytest.fixture
def spec(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> JobSpec:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).resolve().parents[2]))
    (tmp_path / "recipe.yaml").write_text(RECIPE)
    (tmp_path / "site.yaml").write_text(f"python: {tmp_path / 'rank'}\n")
    (tmp_path / "shards").mkdir()
    (tmp_path / "shards/manifest.json").write_text("{}")
    return describe_job("recipe.yaml", overrides=[], profile="site.yaml", processes=[2, 2], workdir=tmp_path)


def run(spec: JobSpec, rank: str, *, look: list[str] = LOOK) -> list[str]:
    """What is reported where the all-reduce's ranks are a shell script."""
    Path("rank").write_text(f"#!/bin/sh\n{rank}\n")
    Path("rank").chmod(0o755)
    said: list[str] = []
    hosts = [Host("localhost", 2), Host("127.0.0.1", 2)]
    preflight(spec, hosts, look=lambda host: look, agents=lambda host: AGENT, report=said.append)
    assert list(Path("runs/small").glob(".preflight-*")) == []
    return said


def test_hosts_without_a_fault_go_on_to_the_all_reduce(spec: JobSpec) -> None:
    said = run(spec, 'echo "all-reduce $RANK of $WORLD_SIZE, $*"')
    assert said[0] == "preflight: 2 hosts have the same code, packages and data, and reach each other"
    assert said[1] == "preflight: all-reduce 0 of 2, -m trainer.fabric 2"


def test_what_the_failing_rank_says_is_told(spec: JobSpec) -> None:
    with pytest.raises(UserError, match=r"failed \(all ranks refused\): b shows 1 GPU\(s\), 2 are asked for"):
        run(spec, 'echo "error: b shows 1 GPU(s), 2 are asked for"; exit 2')


def test_data_that_is_not_there_ends_it_before_the_all_reduce(spec: JobSpec) -> None:
    Path("shards/manifest.json").unlink()
    with pytest.raises(UserError, match=r"^preflight: no host sees .*/shards/manifest\.json$"):
        run(spec, "touch started")
    assert not Path("started").exists()


def test_hosts_that_do_not_answer_are_named(spec: JobSpec) -> None:
    with pytest.raises(UserError, match=r"preflight: no answer from 127\.0\.0\.1, localhost"):
        run(spec, "true", look=["false"])
