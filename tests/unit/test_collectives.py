"""Bytes counted where two ranks really call collectives."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from command_line import Commands

PROGRAM = """\
import json, os, sys
import torch
import torch.distributed as dist
from trainer.collectives import counted_collectives
from trainer.part_clock import PartClock

dist.init_process_group("gloo")
rank = dist.get_rank()
ten, four = torch.ones(10), torch.ones(4, dtype=torch.float64)
before = dist.ProcessGroup.allreduce
clock = PartClock()
with counted_collectives(clock) as sent:
    dist.all_reduce(ten)
    dist.all_reduce(four, async_op=True).wait()
    dist.all_gather([torch.ones(3), torch.ones(3)], torch.ones(3))
    dist.all_gather_into_tensor(torch.ones(6), torch.ones(3))
    dist.reduce_scatter_tensor(torch.ones(3), torch.ones(6))
    dist.broadcast(ten, 0)
    dist.reduce(ten, 0)
    dist.barrier()
    dist.send(four, 1) if rank == 0 else dist.recv(four, 0)
dist.all_reduce(ten)
restored = dist.ProcessGroup.allreduce is before
print(json.dumps({"sent": sent, "timed": sorted(clock.seconds), "restored": restored}))
dist.barrier()
"""


@pytest.fixture(scope="module")
def counted(commands: Commands, tmp_path_factory: pytest.TempPathFactory) -> list[dict]:
    program = tmp_path_factory.mktemp("collectives") / "call_them.py"
    program.write_text(PROGRAM, encoding="utf-8")
    ranks = commands.run_ranks(cwd=Path(program).parent, ranks=2, program=program)
    assert [done.code for done in ranks] == [0, 0], ranks
    return [json.loads(done.out) for done in ranks]


def test_each_kind_is_counted_as_a_ring_of_two_sends_it(counted: list[dict]) -> None:
    # Half of the data: twice that in an all-reduce. A send goes whole, from its sender alone.
    expected = {"all-reduce": 40 + 32, "all-gather": 12 + 12, "reduce-scatter": 12, "broadcast": 20, "reduce": 20}
    assert counted[0]["sent"] == {**expected, "send": 32}
    assert counted[1]["sent"] == expected


def test_what_stages_send_each_other_is_a_part_of_its_own(counted: list[dict]) -> None:
    assert all(rank["timed"] == ["communication", "stage wait"] for rank in counted)


def test_afterwards_nothing_is_counted(counted: list[dict]) -> None:
    assert all(rank["restored"] for rank in counted)
