from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest
from small_corpus import small_tokenizer

from data_pipeline.example_rows import ROW_LENGTHS, RowToken, example_rows, packing_fill
from data_pipeline.manifest import load_manifest
from data_pipeline.shards import BlockStore
from data_pipeline.tokenizer import Tokenizer


@pytest.fixture
def store(shards: Path) -> BlockStore:
    return BlockStore(shards, manifest=load_manifest(shards), split="train")


def test_a_row_is_the_text_between_its_frames_with_every_kind_of_mask(store: BlockStore) -> None:
    tokenizer = Tokenizer.load(small_tokenizer())
    rows = list(example_rows(store, tokenizer=tokenizer, wanted=store.num_blocks, max_seq_len=64))
    assert [row.block for row in rows] == list(range(store.num_blocks))
    kinds = Counter(token.kind for row in rows for token in row.tokens)
    assert set(kinds) >= {"plain", "special", "mask", "random", "kept"}
    predicted = kinds["mask"] + kinds["random"] + kinds["kept"]
    assert 0.10 < predicted / (predicted + kinds["plain"]) < 0.20
    texts = {store.read_block(row.block).tokens.tobytes(): row for row in rows}
    for content, row in texts.items():
        assert 0 < len(row.tokens) <= 64
        assert (row.tokens[0].given, row.tokens[-1].given) == ("[CLS]", "[SEP]")
        # The first document of the row, unmasked, lies in its block as it is.
        first = [token.original for token in row.tokens[1 : [t.given for t in row.tokens].index("[SEP]")]]
        ids = [tokenizer.processor.piece_to_id(piece) for piece in first]
        assert store.read_block(row.block).tokens.astype("uint16").tobytes() == content
        assert b"".join(number.to_bytes(2, "little") for number in ids) in content


def test_tokens_say_what_is_given_and_what_is_to_be_predicted(store: BlockStore) -> None:
    rows = example_rows(store, tokenizer=Tokenizer.load(small_tokenizer()), wanted=store.num_blocks, max_seq_len=64)
    tokens: list[RowToken] = [token for row in rows for token in row.tokens]
    assert all(token.given == "[MASK]" != token.original for token in tokens if token.kind == "mask")
    assert all(token.given != token.original for token in tokens if token.kind == "random")
    assert all(token.given == token.original for token in tokens if token.kind in ("kept", "plain", "special"))


def test_fill_is_higher_packed_than_padded_at_every_length(store: BlockStore) -> None:
    fill = {(entry.packing, entry.max_seq_len): entry.fill for entry in packing_fill(store)}
    for length in ROW_LENGTHS:
        assert 0.0 < fill["padded", length] < fill["packed", length] <= 1.0
    lengths = store.block_lengths(0)
    if store.num_blocks == 1:
        assert fill["padded", 512] == (lengths.sum() + 2 * len(lengths)) / (512 * len(lengths))
