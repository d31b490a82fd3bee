"""`row_witness.py -m MODULE ...` is `python -m MODULE ...`, but a trainer writes down every row it trains on."""

from __future__ import annotations

import os
import runpy
import sys
from collections import defaultdict
from pathlib import Path

# In the trainer's working folder; each rank of each attempt has a file.
FOLDER = "rows"


def rows_trained(folder: Path) -> dict[int, list[tuple[int, str]]]:
    """Number and hash of the rows of each step, sorted, as the last attempt to train that step read them."""
    attempts: dict[int, dict[str, list[tuple[int, str]]]] = defaultdict(lambda: defaultdict(list))
    for path in folder.iterdir():
        # The line that a kill tore is of a step that a later attempt trained again.
        for line in path.read_text().rpartition("\n")[0].splitlines():
            step, row, digest = line.split()
            attempts[int(step)][path.name.rpartition("-")[0]].append((int(row), digest))
    return {step: sorted(of_step[max(of_step)]) for step, of_step in attempts.items()}


def _watch() -> None:
    """Have the trainer's step write its rows down, once it is done with them."""
    from data_pipeline.row_hashes import row_hash
    from trainer.step import DataParallelStep

    train_step = DataParallelStep.train_step
    # The agent sends what a rank says to attempt-NNNN/rank-N.log.
    attempt = Path("/proc/self/fd/1").readlink().parent.name
    Path(FOLDER).mkdir(exist_ok=True)
    file = (Path(FOLDER) / f"{attempt}-{os.environ['RANK']}").open("w", buffering=1)

    def watched(self, batches, *, step, **settings):
        sums = train_step(self, batches, step=step, **settings)
        for batch in batches:
            for place, number in enumerate(batch.row_ids):
                file.write(f"{step} {number} {row_hash(batch, place)}\n")
        return sums

    DataParallelStep.train_step = watched


if __name__ == "__main__":
    arguments = sys.argv[sys.argv.index("-m") + 1 :]
    sys.path[0] = str(Path.cwd())
    if arguments[0] == "trainer":
        _watch()
    sys.argv = arguments
    runpy.run_module(arguments[0], run_name="__main__", alter_sys=True)
