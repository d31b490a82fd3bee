from __future__ import annotations

import importlib
import itertools
import shutil
import threading
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data_pipeline.batch import IGNORED_LABEL, Batch
from data_pipeline.loader import Cursor, TrainLoader
from data_pipeline.manifest import load_manifest
from data_pipeline.masking import TokenMasker
from data_pipeline.packing import Packing
from data_pipeline.reader import RowReader
from data_pipeline.shards import BlockStore, ShardDamage
from trainer.errors import UserError
from trainer.phases import BatchSizes

ROWS = 12
ARRAYS = ("row_ids", "input_ids", "position_ids", "document_ids", "labels")
Rows = list[tuple[bytes, ...]]


def loader(
    shards: Path, *, rank: int = 0, world: int = 1, micro: int = 1, packing: Packing = "packed", **cursor: object
) -> TrainLoader:
    manifest = load_manifest(shards)
    store = BlockStore(shards, manifest=manifest, split="train")
    start = {"fingerprint": manifest.fingerprint, "data_config_hash": "d", "seed": 7, "phase": 0, "next_row": 0}
    special = manifest.special_token_ids
    return TrainLoader(
        RowReader(store, max_seq_len=32, packing=packing, lanes=12, seed=7, dp_world_size=world),
        TokenMasker(
            vocab_size=manifest.vocab_size,
            special_ids=sorted(special.values()),
            mask_id=special["mask"],
            mask_rate=0.15,
            mask_token_rate=0.8,
            random_token_rate=0.1,
            seed=7,
        ),
        cursor=Cursor(**{**start, **cursor}),  # type: ignore[arg-type]
        batch_sizes=BatchSizes(warmup=(), final=ROWS),
        micro_batch_size=micro,
        dp_rank=rank,
        dp_world_size=world,
        prefetch_batches=2,
    )


def rows_of(batch: Batch) -> Rows:
    return [tuple(getattr(batch, name)[row].tobytes() for name in ARRAYS) for row in range(len(batch.row_ids))]


def global_rows(
    shards: Path, *, steps: int, world: int = 1, micro: int = 1, state: dict[str, object] | None = None
) -> tuple[Rows, dict[str, object]]:
    """The rows of so many global batches, put together from all ranks in the order of their numbers; the last state."""
    ranks = [loader(shards, rank=rank, world=world, micro=micro) for rank in range(world)]
    found: Rows = []
    for one in ranks:
        if state is not None:
            one.load_state_dict(state, step=int(state["next_row"]) // ROWS)  # type: ignore[call-overload]
    for _ in range(steps):
        taken = [[row for batch in next(one) for row in rows_of(batch)] for one in ranks]
        found += [row for turn in zip(*taken, strict=True) for row in turn]
    states = [one.state_dict() for one in ranks]
    for one in ranks:
        one.close()
    assert all(other == states[0] for other in states)
    return found, states[0]


def numbers(rows: Rows) -> list[int]:
    return [int(np.frombuffer(row[0], np.int64)[0]) for row in rows]


@pytest.mark.parametrize("world", [1, 2, 3, 4, 6])
@pytest.mark.parametrize("micro", [1, 2])
def test_all_ranks_together_give_the_rows_in_order_bit_for_bit(shards: Path, world: int, micro: int) -> None:
    found, _ = global_rows(shards, steps=3, world=world, micro=micro)
    assert numbers(found) == list(range(3 * ROWS))
    assert found == global_rows(shards, steps=3)[0]


def test_a_step_is_dealt_in_micro_batches(shards: Path) -> None:
    one = loader(shards, rank=1, world=2, micro=3)
    step = next(one)
    one.close()
    assert [batch.row_ids.tolist() for batch in step] == [[1, 3, 5], [7, 9, 11]]


@settings(max_examples=8, deadline=None)
@given(
    stop=st.integers(1, 30),
    before=st.sampled_from([1, 2, 3, 4, 6]),
    after=st.sampled_from([1, 2, 3, 4, 6]),
    micro=st.sampled_from([1, 2]),
)
def test_stopped_anywhere_and_resumed_on_any_number_of_ranks_the_later_rows_are_bit_equal(
    shards: Path, stop: int, before: int, after: int, micro: int
) -> None:
    whole, end = global_rows(shards, steps=stop + 3, world=before)
    first, state = global_rows(shards, steps=stop, world=before)
    rest, resumed_end = global_rows(shards, steps=3, world=after, micro=micro, state=state)
    assert state["next_row"] == stop * ROWS
    assert first + rest == whole
    assert resumed_end == end


def test_the_state_tells_what_was_handed_out_not_what_was_made_ahead(shards: Path) -> None:
    one = loader(shards)
    assert one.state_dict()["next_row"] == 0
    next(one)
    next(one)
    assert one.state_dict()["next_row"] == 2 * ROWS
    one.close()


@pytest.mark.parametrize("packing", ["packed", "padded"])
def test_every_document_is_seen_exactly_once_an_epoch(shards: Path, packing: Packing) -> None:
    manifest = load_manifest(shards)
    store = BlockStore(shards, manifest=manifest, split="train")
    expected: Counter[tuple[int, ...]] = Counter()
    for number in range(store.num_blocks):
        block = store.read_block(number)
        for document in np.split(block.tokens, np.cumsum(block.lengths)[:-1]):
            expected.update(tuple(document[start : start + 30].tolist()) for start in range(0, len(document), 30))
    rows_per_epoch = 0
    for epoch in (0, 1):
        # The second time from just before the first epoch's end, so that a step holds rows of both.
        one = loader(shards, packing=packing, next_row=max(rows_per_epoch - 5, 0))
        rows_per_epoch = one._reader.order.rows_per_epoch
        batches = list(itertools.chain.from_iterable(itertools.islice(one, rows_per_epoch // ROWS + 2)))
        one.close()
        seen: Counter[tuple[int, ...]] = Counter()
        for batch in batches:
            seen.update(pieces_of(batch, rows=np.flatnonzero(batch.row_ids // rows_per_epoch == epoch)))
        assert seen == expected


def pieces_of(batch: Batch, *, rows: np.ndarray) -> list[tuple[int, ...]]:
    """The tokens of each piece, without its frame and as they were before they were masked."""
    ids = np.where(batch.labels == IGNORED_LABEL, batch.input_ids, batch.labels)
    found = []
    for row in rows:
        for document in range(1, batch.document_ids[row].max() + 1):
            found.append(tuple(ids[row][batch.document_ids[row] == document][1:-1].tolist()))
    return found


def test_padded_rows_hold_one_piece_each_and_packed_ones_several(shards: Path) -> None:
    for packing, most in (("padded", {1}), ("packed", {1, 2, 3, 4, 5, 6, 7, 8})):
        one = loader(shards, packing=packing)  # type: ignore[arg-type]
        documents = {int(row.max()) for batch in next(one) for row in batch.document_ids}
        one.close()
        assert documents <= most
        assert (documents == {1}) == (packing == "padded")


def test_each_epoch_has_an_order_and_masks_of_its_own(shards: Path) -> None:
    one = loader(shards)
    rows_per_epoch = one._reader.order.rows_per_epoch
    again = loader(shards, next_row=rows_per_epoch)
    first, second = next(one), next(again)
    one.close()
    again.close()
    assert second[0].row_ids[0] == rows_per_epoch
    assert [rows_of(batch)[0][1] for batch in first] != [rows_of(batch)[0][1] for batch in second]


def test_a_damaged_block_fails_the_step_that_needs_it_by_name(shards: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(shards, tmp_path / "shards")
    tar = folder / "train-000001.tar"
    content = bytearray(tar.read_bytes())
    content[2400] ^= 1
    tar.write_bytes(content)
    one = loader(folder)
    with pytest.raises(ShardDamage, match=r"train-000001\.tar: the crc32 of 0000\d\d\.tokens\.npy is [0-9a-f]{8}, "):
        list(itertools.islice(one, 100))
    assert not any(thread.name == "bertline-prefetch" for thread in threading.enumerate())


def test_webdatasets_own_way_of_opening_urls_has_no_part_in_it(shards: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    opener = importlib.import_module("webdataset.gopen")
    monkeypatch.setattr(opener, "gopen", lambda *_, **__: pytest.fail("gopen was called"))
    monkeypatch.setenv("GOPEN_REWRITE", f"{shards}=pipe:false")
    expected, _ = global_rows(shards, steps=1)
    monkeypatch.delenv("GOPEN_REWRITE")
    assert global_rows(shards, steps=1)[0] == expected


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("fingerprint", "f" * 64, r"another fingerprint \(the shards\): ffffffffffff, now "),
        (
            "data_config_hash",
            "e",
            r"another data_config_hash \(row length, packing, lanes, weights, objective or augmentation\): e, now d",
        ),
        ("seed", 8, r"another seed \(the seed\): 8, now 7; .*: restore the recipe's seed, or start a new run"),
        ("phase", 1, r"another phase"),
    ],
)
def test_a_cursor_of_other_rows_is_refused(shards: Path, key: str, value: object, message: str) -> None:
    one = loader(shards)
    with pytest.raises(UserError, match=message):
        one.load_state_dict({**one.state_dict(), key: value}, step=0)


def test_a_cursor_comes_before_the_first_step(shards: Path) -> None:
    one = loader(shards)
    next(one)
    with pytest.raises(RuntimeError, match="before the first step"):
        one.load_state_dict(one.state_dict(), step=1)
    one.close()
