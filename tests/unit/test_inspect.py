from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from small_corpus import small_tokenizer, write_lines

from data_pipeline.build import build_shards
from data_pipeline.facts import gather_facts
from data_pipeline.inspect import (
    LengthBin,
    count_lengths,
    count_unknown,
    example_documents,
    length_histogram,
    length_percentiles,
    load_shard_tokenizer,
)
from data_pipeline.manifest import load_manifest, seal
from data_pipeline.report import print_report
from data_pipeline.shards import BlockStore
from data_pipeline.tokenizer import Tokenizer
from trainer.errors import UserError

DOCUMENTS = ["ba", "de ki", "☃ lo ☃", "mu na po ra si"]


@pytest.fixture
def shards(tmp_path: Path) -> Path:
    build_shards(
        [write_lines(tmp_path / "text.txt", DOCUMENTS)],
        tokenizer=small_tokenizer(),
        out=tmp_path / "shards",
        workers=1,
        block_tokens=4,
        validation_fraction=0.0,
        progress=False,
    )
    return tmp_path / "shards"


def test_lengths_and_unknown_tokens_are_counted(shards: Path) -> None:
    store = BlockStore(shards, manifest=load_manifest(shards), split="train")
    ids = Tokenizer.load(small_tokenizer()).encode_batch(DOCUMENTS)
    assert count_lengths(store).tolist() == np.bincount([len(document) for document in ids]).tolist()
    unknown = count_unknown(store, unk_id=1)
    assert unknown.sampled_tokens == sum(map(len, ids))
    assert unknown.unknown == 2
    assert unknown.rate == 2 / unknown.sampled_tokens


def test_percentiles_and_histogram_are_exact() -> None:
    counts = np.zeros(101, np.int64)
    counts[[1, 3, 100]] = [50, 49, 1]
    assert length_percentiles(counts) == {1: 1, 5: 1, 25: 1, 50: 1, 75: 3, 95: 3, 99: 3, 100: 100}
    assert length_histogram(counts) == [
        LengthBin(1, 1, 50),
        LengthBin(2, 3, 49),
        LengthBin(4, 7, 0),
        LengthBin(8, 15, 0),
        LengthBin(16, 31, 0),
        LengthBin(32, 63, 0),
        LengthBin(64, 127, 1),
    ]


def test_examples_are_decoded_documents(shards: Path) -> None:
    manifest = load_manifest(shards)
    store = BlockStore(shards, manifest=manifest, split="train")
    tokenizer = load_shard_tokenizer(shards, manifest=manifest)
    texts = [text for _, _, text in example_documents(store, tokenizer=tokenizer, wanted=store.num_blocks)]
    assert texts[0] == "ba"
    assert texts[-1] == "mu na po ra si"
    assert list(example_documents(store, tokenizer=tokenizer, wanted=0)) == []


def test_another_tokenizer_is_refused(shards: Path) -> None:
    manifest = shards / "manifest.json"
    sha256 = load_manifest(shards).tokenizer_sha256
    manifest.write_bytes(seal(json.loads(manifest.read_text().replace(sha256, "0" * 64))))
    with pytest.raises(UserError, match="is not the tokenizer of these shards"):
        load_shard_tokenizer(shards, manifest=load_manifest(shards))


def test_the_report_is_plain_when_piped(shards: Path, capsys: pytest.CaptureFixture[str]) -> None:
    print_report(gather_facts(shards, examples=1))
    printed = capsys.readouterr().out
    assert "\x1b" not in printed
    for expected in (load_manifest(shards).fingerprint, "documents   4 read", "unknown tokens, train: ", "block 0"):
        assert expected in printed
