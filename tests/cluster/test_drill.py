"""`make drill`: random faults over one supervised run, whose end is bit for bit that of a run without a fault."""

from __future__ import annotations

import itertools
import statistics
import time
from collections import defaultdict
from pathlib import Path

import pytest
from cluster_site import DRILL_FAULTS as FAULTS
from cluster_site import Site
from drill_faults import Drill, witnessed_profile
from launching import losses
from row_witness import FOLDER, rows_trained

from data_pipeline.corpus import open_corpus
from data_pipeline.row_hashes import row_hashes
from trainer.checkpoint_files import CheckpointReader
from trainer.events import read_events
from trainer.recipe import load_recipe

SAVE_EVERY = 10
SETTINGS = {
    # Its end decides nothing, so that a run can be stopped anywhere and a run without faults end exactly there.
    "schedule.name": "constant",
    "train.steps": 1_000_000,
    "train.global_batch_size": 12,
    "train.stall_minutes": 0.2,
    "checkpoint.every_steps": SAVE_EVERY,
    "model.hidden_dropout": 0.1,
    "evaluation": "null",
}


def settings(**changed: object) -> list[str]:
    """The recipe's changes as options."""
    return [part for key, value in {**SETTINGS, **changed}.items() for part in ("--set", f"{key}={value}")]


def layouts(events: list[dict]) -> list[tuple[int, int]]:
    """From which step on how many ranks trained what counts: steps trained again count as the last attempt's."""
    found: list[tuple[int, int]] = []
    for event in events:
        if event["event"] == "train":
            found = [each for each in found if each[0] < event["step"]] + [(event["step"], event["world_size"])]
    return [each for before, each in itertools.pairwise([(0, 0), *found]) if each[1] != before[1]]


def train_without_faults(site: Site, cwd: Path, *, changes: list[tuple[int, int]], last_step: int) -> Path:
    """The run folder of a run that changes its layout at the same steps, each time by a new start."""
    for (_, world_size), (end, _) in itertools.pairwise([*changes, (last_step, 0)]):
        hostfile = site.hostfile(cwd, *site.hosts.names[:world_size])
        asked = ("--hostfile", hostfile, "--profile", site.profile, "--no-check", "--no-preflight")
        site.cluster("supervise", site.recipe, *asked, *settings(**{"train.steps": end}), cwd=cwd)
    return cwd / "runs/run"


def report(kinds: dict[str, list[tuple[float, int]]], *, start_up_s: float) -> None:
    """Print a line a kind, and one for all: seconds from the fault to the first new step, steps lost."""
    everything = [found for of_kind in kinds.values() for found in of_kind]
    for kind, found in [*sorted(kinds.items()), ("all", everything)]:
        waits, lost = zip(*found, strict=True)
        print(
            f"{kind}: {len(found)} of {len(found)} survived, first new step after {statistics.median(waits):.1f} s, "
            f"{max(waits):.1f} s at most; {max(lost)} steps lost at most"
        )
    print(f"the framework's own start-up: {start_up_s:.1f} s; saved every {SAVE_EVERY} steps")


def start_up_s(events: list[dict]) -> float:
    """Median seconds from the start of the ranks until they stand ready to train."""
    found = [
        after["time_s"] - before["time_s"]
        for before, after in itertools.pairwise(event for event in events if event["event"] in ("start", "train"))
        if (before["event"], after["event"]) == ("start", "train")
    ]
    return statistics.median(found)


@pytest.mark.skipif(FAULTS == 0, reason="takes a third of a minute a fault: make drill")
@pytest.mark.timeout(0)
def test_random_faults_change_nothing_in_the_model_lose_no_row_and_leave_nothing_behind(site):
    cwd, runs = site.new_folder(), site.hosts.disk / "runs"
    hostfile, profile = site.hostfile(cwd, *site.hosts.names), witnessed_profile(cwd)
    arguments = ["--hostfile", str(hostfile), "--profile", str(profile), "--no-check", "--no-preflight"]
    drill = Drill(site, cwd, run_dir=runs / "run", arguments=[*arguments, *settings(runs_dir=runs)], seed=FAULTS)
    kinds: dict[str, list[tuple[float, int]]] = defaultdict(list)
    drill.start()
    drill.reach(2 * SAVE_EVERY, what="steps")
    for number in range(FAULTS):
        # Not always just behind a save.
        drill.reach(drill.step()[0] + SAVE_EVERY + number % SAVE_EVERY, what="steps before a fault")
        fault = drill.next(number)
        since_s = time.time()
        fault()
        before = drill.step()[0]
        wait_s = drill.reach(before + 1, what=f"a new step after {fault.__name__}") - since_s
        resumed = [e["step"] for e in read_events(drill.run_dir) if e["event"] == "train" and e["time_s"] > since_s]
        lost = max(0, before - resumed[-1]) if resumed else 0
        kinds[fault.__name__.replace("_", " ")].append((wait_s, lost))
        print(f"{number + 1}. {fault.__name__.replace('_', ' ')} at step {before}: {wait_s:.1f} s, {lost} steps lost")
    drill.stop()
    events = read_events(drill.run_dir)
    report(kinds, start_up_s=start_up_s(events))
    for host in site.hosts.names:
        assert site.hosts.run(host, "pgrep", "-f", "trainer pretrain|cluster.agent", expect=None).stdout == ""
    last_step, changes = drill.step()[0], layouts(events)
    print(f"{last_step} steps; ranks from which step on: {changes}")
    whole = train_without_faults(site, site.new_folder(), changes=changes, last_step=last_step)
    assert losses(drill.run_dir / "metrics.jsonl") == losses(whole / "metrics.jsonl")
    last = f"checkpoints/step-{last_step:08d}"
    one, other = (CheckpointReader(folder / last).weights() for folder in (drill.run_dir, whole))
    assert all(one[name].equal(other[name]) for name in other)
    config = load_recipe(str(site.recipe), overrides=settings()[1::2])
    corpus = open_corpus(config.data.all_sources, [site.folder / "shards"])
    planned: dict[int, list[tuple[int, str]]] = defaultdict(list)
    for step, row, digest in row_hashes(config, corpus, first_step=0, end_step=last_step, world_size=1):
        planned[step].append((row, digest))
    assert rows_trained(cwd / FOLDER) == planned
    print(f"{sum(map(len, planned.values()))} rows, each once and in its place; losses and weights bit-equal")
