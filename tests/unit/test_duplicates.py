from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from small_corpus import folder_bytes, made_up_documents, small_tokenizer, write_lines

from data_pipeline.build import build_shards
from data_pipeline.duplicates import SeenTexts, text_digests
from data_pipeline.manifest import Manifest
from data_pipeline.shards import BlockStore
from trainer.errors import UserError


def test_texts_are_equal_but_for_white_space_and_unicode_form() -> None:
    digests = text_digests(["ba  de\tki", " ba de ki", "ba de Ki", "caf\u00e9", "cafe\u0301", ""])
    assert digests.shape == (6, 2)
    assert digests.dtype == np.uint64
    same = [(digests == digest).all(axis=1).tolist() for digest in digests]
    assert [row.index(True) for row in same] == [0, 0, 2, 3, 3, 5]


def test_the_first_of_equal_digests_is_new_in_one_call_and_over_calls() -> None:
    seen = SeenTexts()
    assert seen.add(text_digests(["a", "b", "a", "c", "b"])).tolist() == [True, True, False, True, False]
    assert seen.add(text_digests(["c", "d", "a"])).tolist() == [False, True, False]
    assert seen.add(text_digests([])).tolist() == []


def test_colliding_slots_growth_and_the_digest_of_zeros_lose_nothing() -> None:
    seen = SeenTexts()
    # All of these begin at one slot; and there are more of the others than the first table holds.
    crowded = np.stack([np.full(300, 65536, np.uint64), np.arange(300, dtype=np.uint64)], axis=1)
    spread = np.random.default_rng(0).integers(1, 2**63, (150_000, 2), np.uint64)
    zeros = np.zeros((1, 2), np.uint64)
    for digests in (crowded, *np.split(spread, 100), zeros):
        assert seen.add(digests).all()
    for digests in (*np.split(spread[::-1], 100), zeros, crowded):
        assert not seen.add(digests).any()
    assert seen.num_bytes <= 30 * (300 + 150_000 + 1)


def _build(text: Path, out: str, **settings: Any) -> Manifest:
    chosen = {"shard_tokens": 4000, "block_tokens": 500, "validation_fraction": 0.1, "progress": False, "workers": 1}
    return build_shards(
        [text], tokenizer=small_tokenizer(), out=text.parent / out, **{"deduplicate": True, **chosen, **settings}
    )


@pytest.fixture
def text(tmp_path: Path) -> Path:
    """400 documents, each also with more blanks a while later, and a wordless one twice."""
    documents = made_up_documents(400)
    return write_lines(
        tmp_path / "text.txt", ["\u200b", *documents, *(text.replace(" ", "  ") for text in documents), "\u200b"]
    )


def test_a_build_keeps_the_first_of_each_and_counts_the_rest(text: Path) -> None:
    manifest = _build(text, "out")
    assert (manifest.input_documents, manifest.duplicate_documents, manifest.dropped_documents) == (802, 401, 1)
    assert sum(split.documents for split in manifest.splits.values()) == 400
    once = write_lines(text.parent / "once.txt", made_up_documents(400))
    wanted = _build(once, "once")
    for split in ("train", "validation"):
        stores = [
            BlockStore(text.parent / out, manifest=m, split=split) for out, m in (("out", manifest), ("once", wanted))
        ]
        blocks = [[store.read_block(n).tokens.tolist() for n in range(store.num_blocks)] for store in stores]
        assert blocks[0] == blocks[1]


def test_without_the_option_all_stay_and_the_manifest_says_nothing_of_it(text: Path) -> None:
    manifest = _build(text, "out", deduplicate=False)
    assert (manifest.input_documents, manifest.duplicate_documents, manifest.dropped_documents) == (802, 0, 2)
    assert "duplicates" not in (text.parent / "out/manifest.json").read_text()
    with pytest.raises(UserError, match="deduplicate was False, now True"):
        _build(text, "out")


def test_a_resumed_build_still_knows_what_finished_shards_hold(text: Path) -> None:
    whole = _build(text, "whole", shard_tokens=2000)
    shards = whole.splits["train"].shards
    assert len(shards) > 2
    _build(text, "out", shard_tokens=2000)
    for name in ("manifest.json", shards[-1].name, "validation-000000.index.npz"):
        (text.parent / "out" / name).unlink()
    assert _build(text, "out", shard_tokens=2000) == whole
    assert folder_bytes(text.parent / "out") == folder_bytes(text.parent / "whole")


def test_the_bytes_do_not_depend_on_the_number_of_workers(text: Path) -> None:
    write_lines(text, [*made_up_documents(30_000), *made_up_documents(9_000)])
    settings = {"shard_tokens": 300_000, "block_tokens": 8_192}
    one, two = (_build(text, f"out{workers}", workers=workers, **settings) for workers in (1, 2))
    assert one == two
    assert one.duplicate_documents == 9_000
