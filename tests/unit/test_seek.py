from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from command_line import ROOT

PROGRAM = Path(__file__).with_name("seek_far.py")


def run(*arguments: object) -> dict[str, Any]:
    done = subprocess.run(
        [sys.executable, str(PROGRAM), *map(str, arguments)],
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        check=True,
    )
    found: dict[str, Any] = json.loads(done.stdout)
    return found


@pytest.fixture(scope="module")
def counts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the row counts of a billion documents."""
    folder = tmp_path_factory.mktemp("counts")
    run(folder)
    return folder


@pytest.fixture(scope="module")
def planned(counts: Path) -> dict[int, dict[str, Any]]:
    """What planning the step cost, by step."""
    return {step: run(counts, step, 8) for step in (10, 10_000_000)}


def test_any_step_of_a_billion_documents_is_planned_in_a_second_of_cpu_time(planned: dict[int, dict[str, Any]]) -> None:
    assert all(cost["seconds"] < 1.0 for cost in planned.values()), planned
    # The same work wherever it is: not even twice as much for a million times as far.
    assert planned[10_000_000]["seconds"] < 2 * planned[10]["seconds"]


def test_planning_stays_under_200_mb_with_the_interpreter_and_numpy_in_it(planned: dict[int, dict[str, Any]]) -> None:
    assert all(cost["peak_mb"] < 200 and not cost["torch"] for cost in planned.values()), planned


def test_the_planned_rows_are_full_and_of_documents_all_over_the_corpus(planned: dict[int, dict[str, Any]]) -> None:
    for cost in planned.values():
        assert cost["tokens"] > 0.995 * 32 * 512
        assert 500_000_000 < cost["largest_document"] < 1_000_000_000


def test_a_rank_that_reads_all_lanes_of_a_billion_documents_stays_under_300_mb(counts: Path) -> None:
    cost = run(counts, 10_000_000, 1)
    assert cost["blocks"] == 960
    assert cost["peak_mb"] < 300, cost
