"""A supervised run over ssh goes on through the loss of an agent and of a whole host, and leaves nothing behind."""

from __future__ import annotations

import subprocess
import time

import pytest
from cluster_site import STEPS
from hosts import wait_until
from launching import losses

from trainer.events import read_events


def ranks_on(site, host: str) -> list[str]:
    """Pids, as the host counts them, of the trainers on it."""
    return site.hosts.run(host, "pgrep", "-f", "trainer pretrain", expect=None).stdout.split()


@pytest.fixture
def node2(site):
    """node2, on again afterwards."""
    yield "node2"
    if not site.hosts.is_on("node2"):
        site.hosts.heal("node2")
        site.hosts.boot("node2")


def test_a_run_survives_a_killed_agent_and_a_host_that_loses_power(site, whole_run, node2):
    cwd = site.new_folder()
    hostfile = site.hostfile(cwd, "node1", node2)
    argv = [*site.command, "supervise", site.recipe, "--hostfile", hostfile, "--profile", site.profile]
    argv += ["--no-check", "--no-preflight"]
    with (cwd / "out").open("w") as out:
        job = subprocess.Popen(site.hosts.argv("node1", argv, cwd=cwd), env=site.env, stdout=out, stderr=out)
    metrics = cwd / "runs/run/metrics.jsonl"

    def reached(step: int) -> None:
        what = f"step {step}"
        wait_until(lambda: metrics.exists() and max(losses(metrics), default=0) >= step, what=what, timeout_s=120)

    reached(30)
    site.hosts.run(node2, "pkill", "-9", "-f", "cluster.agent")
    # The agent cannot end its rank any more; the system does.
    wait_until(lambda: not ranks_on(site, node2), what="the orphan to end", timeout_s=5)
    wait_until(lambda: ranks_on(site, node2), what="the second start")
    before = losses(metrics)
    reached(max(before) + 20)
    cut_at = max(losses(metrics))
    assert cut_at < STEPS
    site.hosts.power_off(node2)
    lost_s = time.time()
    assert job.wait(timeout=150) == 0, (cwd / "out").read_text()

    own = ("train", "save", "finished")  # the trainer's
    events = [event for event in read_events(cwd / "runs/run") if event["event"] not in own]
    assert [event["event"] for event in events] == [*(["start", "fault", "restart"] * 2), "start", "end"]
    assert [event["why"] for event in events if event["event"] == "fault"] == ["lost node2"] * 2
    assert [event["world_size"] for event in events if event["event"] == "start"] == [2, 2, 1]
    assert events[4]["time_s"] - lost_s < 30
    found, whole = losses(metrics), losses(whole_run / "metrics.jsonl")
    assert sorted(found) == list(range(1, STEPS + 1))
    resumed_at = cut_at // 20 * 20
    assert all(found[step] == whole[step] for step in range(1, resumed_at + 1))
    # Beyond some sixty steps any two orders of additions drift apart.
    after = range(resumed_at + 1, min(resumed_at + 50, STEPS) + 1)
    assert all(abs(found[step] / whole[step] - 1) < 1e-5 for step in after)
    assert ranks_on(site, "node1") == []
