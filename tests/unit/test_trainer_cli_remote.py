"""A run on shards that lie behind HTTP, two blocks of them damaged, by two ranks."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from command_line import Commands
from file_server import serving, status

from data_pipeline.manifest import load_manifest
from data_pipeline.reader import RowReader
from data_pipeline.shards import BlockStore

STEPS, ROWS, SEED, DAMAGED = 4, 12, 5, (2, 9)


@pytest.fixture
def damaged(shards: Path, tmp_path: Path) -> Path:
    folder = shutil.copytree(shards, tmp_path / "served", ignore=shutil.ignore_patterns("rows-*"))
    store = BlockStore(shards, manifest=load_manifest(shards), split="train")
    for block in DAMAGED:
        shard, local = store._locate(block)
        path = folder / store._shards[shard].name
        content = bytearray(path.read_bytes())
        content[int(store.read_index(shard).offset["tokens"][local]) + 150] ^= 4
        path.write_bytes(content)
    return folder


@pytest.mark.usefixtures("_no_proxy")
def test_two_ranks_train_over_http_and_count_the_rows_of_damaged_blocks(
    commands: Commands, tiny_recipe: Path, damaged: Path, shards: Path, tmp_path: Path
) -> None:
    store = BlockStore(shards, manifest=load_manifest(shards), split="train")
    order = RowReader(store, max_seq_len=32, packing="packed", lanes=12, seed=SEED).order
    blocks = order.locate(np.arange(STEPS * ROWS)).block
    lost = [int(np.isin(blocks[step * ROWS : (step + 1) * ROWS], DAMAGED).sum()) for step in range(STEPS)]
    assert sum(lost) > 0
    with serving(damaged) as server:
        server.only, server.faults = ".tar", [status(503)] * 3
        settings = ["--set", f"data.shards={server.url}"]
        cache = ["--set", f"data.cache.folder={tmp_path}/cache", "--set", "data.cache.max_gib=0.5"]
        # Micro-batches of one row: some have nothing to learn from.
        skip = ["--set", "data.on_damage=skip", "--set", "train.micro_batch_size=1"]
        done = commands.run_ranks("pretrain", tiny_recipe, *settings, *cache, *skip, cwd=tmp_path, ranks=2)
        assert [one.code for one in done] == [0, 0], done
        assert server.faults == []
        records = [json.loads(line) for line in (tmp_path / "runs/tiny/metrics.jsonl").read_text().splitlines()]
        records = [record for record in records if "train/loss" in record]
        assert [record["data/skipped_rows"] for record in records] == lost
        assert records[-1]["data/skipped_blocks"] == len(set(DAMAGED) & set(blocks.tolist()))
        out = done[0].out + done[1].out
        for block in set(DAMAGED) & set(blocks.tolist()):
            assert out.count(f"skipping block {block} of train") == 1
        assert sorted(path.name[:6] for path in (tmp_path / "cache").iterdir()) == ["blocks", "shards"]
        asked = server.asked(".tar")
        evaluated = commands.run("evaluate", tmp_path / "runs/tiny", cwd=tmp_path)
        assert (evaluated.code, evaluated.err) == (0, ""), evaluated
        checked = commands.run("check", tiny_recipe, *settings, *cache, cwd=tmp_path)
        assert (checked.code, checked.err) == (0, ""), checked
        assert server.asked(".tar") == asked
        stopped = commands.mistake("pretrain", tiny_recipe, *settings, "--set", "name=other", cwd=tmp_path)
        assert f"{server.url}/train-00000" in stopped
        assert ": the crc32 of " in stopped


@pytest.fixture
def _no_proxy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ("data.shards=pipe:cat x", "has the scheme 'pipe', which is not read"),
        ("data.shards=http://me:word@host/x", "a http place must read http://HOST/PATH"),
        ("data.cache.max_gib=1", "data.cache belongs to shards on the network"),
        ("data.on_damage=ignore", "data.on_damage"),
    ],
)
def test_a_place_that_is_not_read_is_refused_before_anything_starts(
    commands: Commands, tiny_recipe: Path, tmp_path: Path, setting: str, message: str
) -> None:
    line = commands.mistake("show-config", tiny_recipe, "--set", setting, cwd=tmp_path)
    assert message in line
    assert "word" not in line
