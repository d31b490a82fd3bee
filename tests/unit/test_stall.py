from __future__ import annotations

from pathlib import Path

from command_line import Commands

from trainer.stall import StallWatch

PROGRAM = """\
import threading, time
from pathlib import Path
from trainer.stall import StallWatch

def stand_still():
    time.sleep(60)

threading.Thread(target=stand_still, daemon=True).start()
with StallWatch(Path("run"), rank=3, minutes=0.5 / 60) as watch:
    for _ in range(8):
        time.sleep(0.1)
        watch.beat()
    print("moved", flush=True)
    stand_still()
"""


def test_a_run_that_stands_still_writes_the_stacks_of_all_threads_and_ends(commands: Commands, tmp_path: Path) -> None:
    program = tmp_path / "program.py"
    program.write_text(PROGRAM)
    done = commands.wait(commands.start(cwd=tmp_path, program=program))
    assert (done.code, done.out) == (1, "moved\n")
    stacks = (tmp_path / "run/stacks/rank-3.txt").read_text()
    assert stacks.startswith("Timeout (")
    assert stacks.count("in stand_still") == 2


def test_a_run_that_ends_in_time_leaves_no_file(tmp_path: Path) -> None:
    with StallWatch(tmp_path, rank=0, minutes=1.0):
        assert (tmp_path / "stacks/rank-0.txt").exists()
    assert not (tmp_path / "stacks").exists()


def test_without_minutes_nothing_is_watched(tmp_path: Path) -> None:
    with StallWatch(tmp_path, rank=0, minutes=None) as watch:
        watch.beat()
    assert list(tmp_path.iterdir()) == []
