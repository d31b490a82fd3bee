import shutil

import pytest
from small_corpus import made_up_documents, write_lines

from data_pipeline.manifest import load_manifest
from data_pipeline.tokenizer import train_tokenizer
from data_pipeline.vocabulary import Vocabulary, load_tokenizer
from trainer.errors import UserError


def test_pieces_begin_words_and_end_sentences():
    pieces = ["[PAD]", "▁the", "er", "▁", ".", "!”", "▁e.g.", "。", "？", "…", "3.5", "<0x0A>", "a\n", "？」", ",", ":"]
    vocabulary = Vocabulary.of_pieces(pieces)
    assert [piece for piece, flag in zip(pieces, vocabulary.word_start, strict=True) if flag] == ["▁the", "▁", "▁e.g."]
    ends = [piece for piece, flag in zip(pieces, vocabulary.sentence_end, strict=True) if flag]
    assert ends == [".", "!”", "▁e.g.", "。", "？", "…", "<0x0A>", "a\n", "？」"]


@pytest.mark.parametrize(("marked", "knows"), [(50, True), (31, True), (12, False)])
def test_words_are_known_where_enough_pieces_begin_one(marked, knows):
    assert Vocabulary.of_pieces(["▁a"] * marked + ["b"] * (100 - marked)).knows_words == knows


def test_another_tokenizer_beside_the_shards_is_refused(shards, tmp_path):
    folder = shutil.copytree(shards, tmp_path / "shards")
    assert load_tokenizer(folder, load_manifest(folder)).vocab_size == 300
    shutil.rmtree(folder / "tokenizer")
    text = write_lines(tmp_path / "other.txt", made_up_documents(300, seed=9))
    train_tokenizer([text], out=folder / "tokenizer", vocab_size=200, progress=False)
    with pytest.raises(UserError, match=r"is not the tokenizer that .* was built with"):
        load_tokenizer(folder, load_manifest(folder))
