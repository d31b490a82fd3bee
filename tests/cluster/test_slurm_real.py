"""A real SLURM: a job on three nodes, one that is told to stop, and what it refuses."""

from __future__ import annotations

import re

import pytest
from cluster_site import DRILL_FAULTS, PROFILE, STEPS, TWO_STEPS, ranks_on
from hosts import wait_until
from launching import losses
from slurm_cluster import CONTROLLER

from cluster.profile import PROFILES_DIR
from trainer.checkpoint_files import CheckpointReader
from trainer.events import read_events


@pytest.fixture(autouse=True)
def _slurm_runs(slurm) -> None:
    """SLURM is there for every test of this file."""


def submit(site, cwd, *arguments, nodes: int = 2, time: str = "5", preflight: bool = False) -> str:
    """Submit the recipe with one process a node; gives the job's id."""
    asked = ("--nodes", nodes, "--gpus-per-node", 1, "--time", time, "--profile", site.profile)
    wanted = "--preflight" if preflight else "--no-preflight"
    done = site.cluster("slurm", site.recipe, *asked, wanted, "--no-check", *arguments, cwd=cwd)
    return re.search(r"submitted job (\d+);", done.stdout)[1]


def check_same_end(run_dir, whole_run) -> None:
    """Losses and last weights are those of the run without a fault, bit for bit."""
    assert losses(run_dir / "metrics.jsonl") == losses(whole_run / "metrics.jsonl")
    last = f"checkpoints/step-{STEPS:08d}"
    one, other = (CheckpointReader(folder / last).weights() for folder in (run_dir, whole_run))
    assert one.keys() == other.keys()
    assert all(one[name].equal(other[name]) for name in one)


def refused(site, cwd, *arguments) -> str:
    done = site.cluster(*arguments, cwd=cwd, expect=2)
    assert done.stdout == ""
    assert done.stderr.count("\n") == 1
    return done.stderr


def test_a_job_on_three_nodes_ends_with_its_ranks_and_is_followed(site, slurm):
    cwd = site.new_folder("a folder; $(touch executed)")
    job = submit(site, cwd, *TWO_STEPS, "--set", "train.global_batch_size=6", nodes=3, preflight=True)
    assert f"{job} " in site.cluster("status", "runs/run", cwd=cwd).stdout
    assert slurm.wait(job, states=("COMPLETED", "FAILED"))["ExitCode"] == "0:0"
    assert sorted(losses(cwd / "runs/run/metrics.jsonl")) == [1, 2]
    # This SLURM keeps no accounts, so its controller is asked.
    assert f"JobId={job} JobState=COMPLETED" in site.cluster("status", "runs/run", cwd=cwd).stdout
    assert "step 2/2" in site.cluster("logs", "runs/run", "--rank", 0, cwd=cwd).stdout
    assert {path.name for path in (cwd / "runs/run/logs" / job).iterdir()} == {f"rank-{rank}.log" for rank in range(3)}
    assert "preflight: all-reduce between 3 hosts: " in site.cluster("logs", "runs/run", cwd=cwd).stdout
    assert not (cwd / "executed").exists()


def test_a_job_told_to_stop_saves_is_requeued_and_goes_on_bit_for_bit(site, slurm, whole_run):
    cwd = site.new_folder()
    job = submit(site, cwd, "--set", "checkpoint.every_steps=1000")
    metrics = cwd / "runs/run/metrics.jsonl"
    wait_until(lambda: metrics.exists() and len(losses(metrics)) >= 3, what="three steps", timeout_s=180)
    site.hosts.run(CONTROLLER, "scancel", "--signal=USR2", job)
    slurm.wait(job, states=("PENDING",))
    stopped_at = max(losses(metrics))
    assert 3 <= stopped_at < STEPS
    slurm.start_requeued(job)
    ended = slurm.wait(job, states=("COMPLETED", "FAILED"))
    assert (ended["Restarts"], ended["ExitCode"]) == ("1", "0:0"), site.cluster("logs", "runs/run", cwd=cwd).stdout
    log = site.cluster("logs", "runs/run", "--rank", 0, cwd=cwd).stdout
    assert f"told to stop: saved step {stopped_at}" in log
    assert f"at step {stopped_at}" in log.partition("told to stop")[2]
    check_same_end(cwd / "runs/run", whole_run)


@pytest.mark.skipif(DRILL_FAULTS == 0, reason="a time limit is a minute at least: make drill")
@pytest.mark.timeout(600)
def test_a_job_at_its_time_limit_saves_is_requeued_and_goes_on_bit_for_bit(site, slurm, whole_run):
    cwd = site.new_folder()
    (cwd / "short.yaml").write_text(f"{PROFILE}grace_s: 50\n")
    # Saving and evaluating at every step, the run takes longer than what is left of the minute.
    slow = ("--set", "checkpoint.every_steps=1", "--set", "evaluation.every_steps=1")
    job = submit(site, cwd, "--profile", "short.yaml", *slow, time="1")
    metrics = cwd / "runs/run/metrics.jsonl"
    wait_until(lambda: metrics.exists() and len(losses(metrics)) >= 3, what="three steps", timeout_s=180)
    ends = ("COMPLETED", "FAILED", "TIMEOUT", "PENDING")
    while (ended := slurm.wait(job, states=ends))["JobState"] == "PENDING":
        slurm.start_requeued(job)
        slurm.wait(job, states=("RUNNING", "FAILED"))
    told = site.cluster("logs", "runs/run", cwd=cwd).stdout
    assert (ended["JobState"], ended["ExitCode"]) == ("COMPLETED", "0:0"), told
    assert int(ended["Restarts"]) >= 1
    assert "told to stop: saved step" in site.cluster("logs", "runs/run", "--rank", 0, cwd=cwd).stdout
    check_same_end(cwd / "runs/run", whole_run)


def test_a_supervised_job_goes_on_without_a_lost_node_inside_its_allocation(site, slurm, whole_run):
    cwd = site.new_folder()
    job = submit(site, cwd, "--restarts", 2)
    metrics = cwd / "runs/run/metrics.jsonl"
    wait_until(lambda: metrics.exists() and max(losses(metrics), default=0) >= 50, what="fifty steps", timeout_s=180)
    try:
        site.hosts.power_off("node2")
        ended = slurm.wait(job, states=("COMPLETED", "FAILED", "PENDING"))
    finally:
        site.hosts.heal("node2")
        site.hosts.boot("node2")
        slurm.start("node2")
    told = site.cluster("logs", "runs/run", cwd=cwd).stdout
    assert (ended["JobState"], ended["ExitCode"], ended["Restarts"]) == ("COMPLETED", "0:0", "0"), told
    assert "fault: why lost node2" in told
    found, whole = losses(metrics), losses(whole_run / "metrics.jsonl")
    starts = [event for event in read_events(cwd / "runs/run") if event["event"] == "train"]
    assert [event["world_size"] for event in starts] == [2, 1]
    resumed_at = starts[1]["step"]
    assert resumed_at >= 40
    assert sorted(found) == list(range(1, STEPS + 1))
    assert all(found[step] == whole[step] for step in range(1, resumed_at + 1))
    # Beyond some sixty steps any two orders of additions drift apart.
    assert all(abs(found[step] / whole[step] - 1) < 1e-5 for step in range(resumed_at + 1, min(resumed_at + 50, STEPS)))
    assert ranks_on(site, CONTROLLER) == []


def test_the_exit_code_of_a_mistake_comes_through(site, slurm):
    cwd = site.new_folder()
    job = submit(site, cwd, "--set", "data.shards=nowhere")
    assert slurm.wait(job, states=("COMPLETED", "FAILED"))["ExitCode"] == "2:0"
    assert re.search(r"^rank [01]: error: .*nowhere", site.cluster("logs", "runs/run", cwd=cwd).stdout, re.MULTILINE)


def test_continuations_that_a_finished_run_does_not_need_are_cancelled(site, slurm):
    cwd = site.new_folder()
    job = submit(site, cwd, *TWO_STEPS, "--continuations", 2)
    assert slurm.wait(f"{job}_1", states=("COMPLETED", "FAILED"))["ExitCode"] == "0:0"
    assert slurm.wait(f"{job}_2", states=("CANCELLED", "RUNNING"))["JobState"] == "CANCELLED"
    assert sorted(losses(cwd / "runs/run/metrics.jsonl")) == [1, 2]


def test_a_job_is_cancelled_and_a_job_that_is_gone_is_said_to_be(site, slurm):
    cwd = site.new_folder()
    job = submit(site, cwd)
    metrics = cwd / "runs/run/metrics.jsonl"
    wait_until(lambda: metrics.exists() and len(losses(metrics)) >= 3, what="three steps", timeout_s=180)
    assert f"cancelled job {job}" in site.cluster("cancel", "runs/run", cwd=cwd).stdout
    # It saves, and does not come back.
    assert slurm.wait(job, states=("CANCELLED", "PENDING"))["JobState"] == "CANCELLED"
    assert "told to stop: saved step" in site.cluster("logs", "runs/run", "--rank", 0, cwd=cwd).stdout
    assert "there is nothing to cancel" in refused(site, cwd, "cancel", "runs/run")
    (cwd / "runs/run/jobs.jsonl").write_text('{"job_id": "999999"}\n')
    assert "job 999999 is gone" in refused(site, cwd, "status", "runs/run")
    assert "job 999999 is not queued or running" in refused(site, cwd, "cancel", "runs/run")


def test_what_this_slurm_cannot_run_is_refused_and_nothing_written(site):
    cwd = site.new_folder()
    asked = ("slurm", site.recipe, "--gpus-per-node", 1, "--time", "5", "--profile", site.profile, "--nodes")
    assert "--nodes 4, but partition main has 3; ask for fewer" in refused(site, cwd, *asked, 4)
    assert "SLURM has no partition big; there are main" in refused(site, cwd, *asked, 1, "--partition", "big")
    assert list(cwd.iterdir()) == []


@pytest.mark.parametrize("profile", sorted(path.stem for path in PROFILES_DIR.glob("*.yaml")))
def test_slurm_accepts_the_script_of_every_profile(site, profile):
    cwd = site.new_folder()
    asked = ("--nodes", 2, "--gpus-per-node", 1, "--time", "5", "--profile", profile, "--dry-run")
    text = site.cluster("slurm", site.recipe, *asked, cwd=cwd).stdout
    # The nodes here have four CPUs, and this SLURM no pyxis.
    script = text.partition("job.sbatch:\n")[2].rpartition("\n\n")[0].replace("--cpus-per-task=14", "--cpus-per-task=2")
    (cwd / "job.sbatch").write_text(script)
    done = site.hosts.run(CONTROLLER, "sbatch", "--test-only", cwd / "job.sbatch", cwd=cwd)
    assert "to start at" in done.stderr
    site.hosts.run(CONTROLLER, "bash", "-n", cwd / "job.sbatch")
