"""A supervised run over ssh goes on bit for bit when an agent is killed, and leaves nothing behind."""

from __future__ import annotations

import subprocess

from cluster_site import STEPS, ranks_on
from hosts import wait_until
from launching import losses

from trainer.events import read_events


def test_a_run_survives_a_killed_agent_and_no_process_outlives_it(site, whole_run):
    cwd = site.new_folder()
    hostfile = site.hostfile(cwd, "node1", "node2")
    argv = [*site.command, "supervise", site.recipe, "--hostfile", hostfile, "--profile", site.profile]
    argv += ["--no-check", "--no-preflight"]
    with (cwd / "out").open("w") as out:
        job = subprocess.Popen(site.hosts.argv("node1", argv, cwd=cwd), env=site.env, stdout=out, stderr=out)
    metrics = cwd / "runs/run/metrics.jsonl"
    wait_until(lambda: metrics.exists() and max(losses(metrics), default=0) >= 30, what="thirty steps", timeout_s=120)
    site.hosts.run("node2", "pkill", "-9", "-f", "cluster.agent")
    # The agent cannot end its rank any more; the system does.
    wait_until(lambda: not ranks_on(site, "node2"), what="the orphan to end", timeout_s=5)
    assert job.wait(timeout=150) == 0, (cwd / "out").read_text()
    own = ("train", "save", "finished")  # the trainer's
    events = [event for event in read_events(cwd / "runs/run") if event["event"] not in own]
    assert [event["event"] for event in events] == ["start", "fault", "restart", "start", "end"]
    assert events[1]["why"] == "lost node2"
    assert [event["world_size"] for event in events if event["event"] == "start"] == [2, 2]
    assert losses(metrics) == losses(whole_run / "metrics.jsonl")
    assert sorted(losses(metrics)) == list(range(1, STEPS + 1))
    assert ranks_on(site, "node1") + ranks_on(site, "node2") == []
