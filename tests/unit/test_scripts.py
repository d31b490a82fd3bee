from __future__ import annotations

from pathlib import Path

import pytest
from small_corpus import small_tokenizer, write_lines

from data_pipeline.build import build_shards
from data_pipeline.manifest import load_manifest
from data_pipeline.scripts import NO_LETTERS, ScriptShare, letter_script, piece_letters, script_shares
from data_pipeline.shards import BlockStore
from data_pipeline.tokenizer import Tokenizer


@pytest.mark.parametrize(
    ("character", "script"),
    [
        ("a", "Latin"),
        ("é", "Latin"),
        ("ａ", "Latin"),
        ("ж", "Cyrillic"),
        ("水", "CJK"),
        ("ｱ", "Katakana"),
        ("ひ", "Hiragana"),
        ("한", "Hangul"),
        ("ש", "Hebrew"),
        ("7", None),
        ("▁", None),
        ("☃", None),
        ("\u0301", None),
    ],
)
def test_the_script_of_a_character(character: str, script: str | None) -> None:
    assert letter_script(character) == script


def test_letters_of_pieces_are_counted_and_special_ones_have_none() -> None:
    scripts, letters = piece_letters(["[PAD]", "▁ab水", "ж7"], special_ids=[0])
    assert scripts == ["CJK", "Cyrillic", "Latin"]
    assert letters.tolist() == [[0, 0, 0], [1, 0, 2], [0, 1, 0]]


def test_shares_count_letters_and_each_document_once(tmp_path: Path) -> None:
    build_shards(
        [write_lines(tmp_path / "text.txt", ["ba de", "水 水 a", "7 7", "ki"])],
        tokenizer=small_tokenizer(),
        out=tmp_path / "shards",
        workers=1,
        block_tokens=9,
        validation_fraction=0.0,
        progress=False,
    )
    store = BlockStore(tmp_path / "shards", manifest=load_manifest(tmp_path / "shards"), split="train")
    assert store.num_blocks > 1
    assert script_shares(store, tokenizer=Tokenizer.load(small_tokenizer())) == [
        ScriptShare("Latin", 7, 2),
        ScriptShare("CJK", 2, 1),
        ScriptShare(NO_LETTERS, 0, 1),
    ]
