"""`python -m cluster local` trains, and its exit code is the ranks' own."""

import sys

from launching import losses, run


def test_it_trains_on_two_processes_and_gives_the_exit_code_of_a_mistake(recipe, tmp_path):
    command = [sys.executable, "-m", "cluster", "local", str(recipe), "--procs", "2", "--set"]
    run([*command, "train.steps=2", "--set", "schedule.warmup_steps=1", "--set", "evaluation=null"], cwd=tmp_path)
    assert sorted(losses(tmp_path / "runs/run/metrics.jsonl")) == [1, 2]
    assert run([*command, "data.shards=nowhere"], cwd=tmp_path, expect=2).count("error: ") == 1
    late = [*command, "data.shards=nowhere", "--no-check"]
    assert run(late, cwd=tmp_path, expect=2).count("error: ") == 1
