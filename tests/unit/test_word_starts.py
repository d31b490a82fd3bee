from __future__ import annotations

import sys
import tarfile
from pathlib import Path

import numpy as np
import pytest
import webdataset
from hypothesis import given, settings
from hypothesis import strategies as st
from small_corpus import small_tokenizer, write_lines

from data_pipeline.build import build_shards
from data_pipeline.manifest import Manifest, load_manifest
from data_pipeline.shard_writer import finished_shards
from data_pipeline.shards import BlockStore, ShardDamage
from data_pipeline.tokenizer import Tokenizer, train_tokenizer
from data_pipeline.verify import find_damage
from data_pipeline.word_starts import batch_word_starts, segment_words, word_starts
from trainer.errors import UserError

TEXTS = ["我们今天学习自然语言处理", "北京大学的学生  hello world", "水"]


def _starts(offsets: list[tuple[int, int]], words: list[int]) -> list[bool]:
    return word_starts(np.array(offsets, np.int64).reshape(-1, 2), words=np.array(words, np.int64)).tolist()


def test_a_token_begins_a_word_where_another_word_begins() -> None:
    assert _starts([(0, 1), (1, 2), (2, 4)], [0, 0, 1, 1]) == [True, False, True]


def test_a_token_that_spans_a_border_joins_the_words_on_its_sides() -> None:
    # Words 0, 1 and 2 of two characters each; the second token holds the end of 0 and the beginning of 1.
    assert _starts([(0, 1), (1, 3), (3, 4), (4, 6)], [0, 0, 1, 1, 2, 2]) == [True, False, False, True]


def test_tokens_made_from_one_character_stay_together() -> None:
    # The prefix without characters of its own, and a character that became several.
    assert _starts([(0, 0), (0, 1), (1, 1), (1, 2)], [0, 1]) == [True, False, True, False]
    assert _starts([], []) == []


def test_blanks_belong_to_the_word_behind_them() -> None:
    words = segment_words("北京  大学 ab")
    assert words.tolist() == [words[0]] * 2 + [words[4]] * 4 + [words[7]] * 3
    assert len(set(words.tolist())) == 3


@given(st.text(st.sampled_from("北京大学的 ab1.，\r\n\t\u3000\u200b\U00020000é"), max_size=30))
@settings(max_examples=200, deadline=None)
def test_every_character_has_a_word_and_words_follow_each_other(text: str) -> None:
    words = segment_words(text)
    assert len(words) == len(text)
    assert (np.diff(words) >= 0).all()


@pytest.fixture(scope="module")
def chinese(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("chinese")
    text = write_lines(folder / "text.txt", TEXTS * 20)
    train_tokenizer([text], out=folder / "tokenizer", vocab_size=50, model_type="bpe", progress=False)
    _build(folder, "shards")
    return folder


def _build(folder: Path, out: str, **settings: object) -> Manifest:
    return build_shards(
        [folder / "text.txt"],
        tokenizer=folder / "tokenizer",
        out=folder / out,
        **{  # type: ignore[arg-type]
            "block_tokens": 50,
            "shard_tokens": 300,
            "validation_fraction": 0.0,
            "word_starts": "jieba",
            "workers": 1,
            "progress": False,
            **settings,
        },
    )


def test_a_build_keeps_them_beside_the_tokens_and_a_stock_reader_sees_them(chinese: Path) -> None:
    store = BlockStore(chinese / "shards", manifest=load_manifest(chinese / "shards"), split="train")
    ids, offsets = Tokenizer.load(chinese / "tokenizer").encode_with_offsets(TEXTS * 20)
    blocks = [store.read_block(number, words=True) for number in range(store.num_blocks)]
    assert np.concatenate([block.tokens for block in blocks]).tolist() == np.concatenate(ids).tolist()
    starts = np.concatenate([block.word_starts for block in blocks if block.word_starts is not None])
    assert starts.tolist() == batch_word_starts(TEXTS * 20, offsets).tolist()
    assert starts.dtype == np.bool_
    assert not blocks[0].word_starts.flags.writeable  # type: ignore[union-attr]
    assert store.read_block(0).word_starts is None
    sample = next(iter(webdataset.WebDataset(str(chinese / "shards/train-000000.tar"), shardshuffle=False).decode()))
    assert (
        np.unpackbits(sample["words.npy"])[: len(blocks[0].tokens)].tolist() == starts[: len(blocks[0].tokens)].tolist()
    )


def test_words_cover_whole_words_whatever_the_pieces(chinese: Path) -> None:
    _, offsets = Tokenizer.load(chinese / "tokenizer").encode_with_offsets(TEXTS)
    for text, spans in zip(TEXTS, offsets, strict=True):
        words = segment_words(text)
        group = np.cumsum(word_starts(spans, words=words))
        for word in set(words.tolist()):
            characters = np.flatnonzero(words == word)
            touching = (spans[:, 0] <= characters[-1]) & (spans[:, 1] > characters[0])
            assert len(set(group[touching].tolist())) == 1


def test_the_manifest_names_the_field_and_shards_without_give_none(chinese: Path, tmp_path: Path) -> None:
    assert load_manifest(chinese / "shards").fields == ("lengths", "tokens", "words")
    plain = _build(chinese, "plain", word_starts="vocabulary")
    assert plain.fields == ("lengths", "tokens")
    assert BlockStore(chinese / "plain", manifest=plain, split="train").read_block(0, words=True).word_starts is None
    with tarfile.open(chinese / "plain/train-000000.tar") as archive:
        assert not [name for name in archive.getnames() if "words" in name]


def test_processes_and_a_resumed_build_give_the_same_bytes(chinese: Path) -> None:
    whole = load_manifest(chinese / "shards")
    assert _build(chinese, "two", workers=2).fingerprint == whole.fingerprint
    (chinese / "two/manifest.json").unlink()
    (chinese / "two" / whole.splits["train"].shards[-1].name).unlink()
    assert len(finished_shards(chinese / "two", split="train")[0]) == len(whole.splits["train"].shards) - 1
    assert _build(chinese, "two").fingerprint == whole.fingerprint


def test_damage_is_found_and_named(chinese: Path) -> None:
    manifest = _build(chinese, "damaged")
    tar = chinese / "damaged/train-000000.tar"
    content = bytearray(tar.read_bytes())
    with tarfile.open(tar) as archive:
        place = archive.getmember("000001.words.npy").offset_data + 128
    content[place] ^= 1
    tar.write_bytes(content)
    found = list(find_damage(chinese / "damaged", manifest=manifest))
    assert len(found) == 2
    assert "the crc32 of 000001.words.npy is " in found[1]
    store = BlockStore(chinese / "damaged", manifest=manifest, split="train")
    assert len(store.read_block(1).tokens) > 0, "who asks for no words reads none"
    with pytest.raises(ShardDamage, match=r"crc32 of 000001\.words\.npy"):
        store.read_block(1, words=True)


def test_words_that_do_not_begin_with_their_document_are_found(chinese: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        "data_pipeline.build_worker.batch_word_starts",
        lambda texts, offsets: np.zeros(sum(map(len, offsets)), np.bool_),
    )
    manifest = _build(chinese, "wrong")
    found = list(find_damage(chinese / "wrong", manifest=manifest))
    assert found
    assert all("words.npy does not begin a word at each document's first token" in line for line in found)


def test_a_missing_segmenter_and_an_unknown_one_are_one_line(chinese: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UserError, match="--word-starts mecab is unknown; choose vocabulary or jieba"):
        _build(chinese, "none", word_starts="mecab")
    monkeypatch.setitem(sys.modules, "jieba", None)
    with pytest.raises(UserError, match=r"pip install 'bertline\[zh\]'"):
        _build(chinese, "none")
    assert not (chinese / "none").exists()


def test_another_choice_in_the_same_folder_is_refused(chinese: Path) -> None:
    with pytest.raises(UserError, match="word_starts was jieba, now vocabulary"):
        _build(chinese, "shards", word_starts="vocabulary")


def test_offsets_are_those_of_the_text() -> None:
    ids, offsets = Tokenizer.load(small_tokenizer()).encode_with_offsets(["ba de", ""])
    assert ids[0].tolist() == Tokenizer.load(small_tokenizer()).encode_batch(["ba de"])[0].tolist()
    assert offsets[0].tolist() == [[0, 2], [2, 5]]
    assert (ids[1].shape, offsets[1].shape) == ((0,), (0, 2))
