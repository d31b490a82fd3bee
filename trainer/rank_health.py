"""How each rank of a job fares: which one is slow, which waits for data, how often the run has been started again."""

from __future__ import annotations

import socket
import statistics
from collections.abc import Sequence
from pathlib import Path

import torch.distributed as dist

from trainer.events import append_event, read_events
from trainer.topology import Topology

# A rank's, in seconds: a whole step, which in the end takes all ranks as long; a micro-batch's forward pass, in which
# a rank waits for no other (below ZeRO-3); a step's wait for data.
FIGURES = ("step_s", "forward_s", "data_wait_s")
_DECIMALS = 6


def note_start(run_dir: Path, *, step: int, topology: Topology) -> None:
    """Write down that training starts at a step, and on which host each rank is; collective."""
    hosts: list[str | None] = [None] * topology.world_size
    dist.all_gather_object(hosts, socket.gethostname())
    if topology.is_main:
        append_event(run_dir, "train", step=step, world_size=topology.world_size, hosts=hosts)


def restarts(run_dir: Path) -> int:
    """How often training was started again, by the events of the run."""
    starts = [event for event in read_events(run_dir) if event["event"] == "train"]
    return max(0, len(starts) - 1)


def placed(own: Sequence[float], *, topology: Topology) -> list[float]:
    """This rank's FIGURES among zeros: the sum over ranks then holds those of all ranks, figure by figure."""
    return [value if rank == topology.rank else 0.0 for value in own for rank in range(topology.world_size)]


def by_rank(summed: Sequence[float], *, topology: Topology) -> dict[str, float | list[float]]:
    """Metrics from the sum of what all ranks `placed`: for each figure a list of one value a rank, and the slowest.

    That is the rank whose forward pass is longest beside the median of its pipeline stage. Empty where there is one
    rank.
    """
    size, width = topology.world_size, topology.dp_world_size
    if size == 1:
        return {}
    values = {
        figure: [round(value, _DECIMALS) for value in summed[number * size : (number + 1) * size]]
        for number, figure in enumerate(FIGURES)
    }
    forward = values["forward_s"]
    medians = [statistics.median(forward[first : first + width]) for first in range(0, size, width)]
    slowness = [value / medians[rank // width] if value else 0.0 for rank, value in enumerate(forward)]
    slowest = max(range(size), key=slowness.__getitem__)
    return {
        **{f"ranks/{figure}": of_ranks for figure, of_ranks in values.items()},
        "ranks/slowest": float(slowest),
        "ranks/slowest_over_median": slowness[slowest],
    }
