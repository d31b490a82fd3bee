"""Reading sentencepiece's charsmap, and where barriers go."""

from __future__ import annotations

from pathlib import Path

import pytest
import sentencepiece

from trainer.model.hf_normalizer import barrier_pattern, build_normalizer, read_charsmap

tokenizers = pytest.importorskip("tokenizers", reason="needs tokenizers: pip install 'bertline[hf]'")


def charsmap_of(folder: Path, rules: dict[str, str]) -> bytes:
    """The charsmap that sentencepiece itself compiles from `rules`."""
    from sentencepiece import sentencepiece_model_pb2

    def points(text: str) -> str:
        return " ".join(f"{ord(character):X}" for character in text)

    table = folder / "rules.tsv"
    table.write_text("".join(f"{points(key)}\t{points(value)}\n" for key, value in rules.items()))
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(["a b c d e"] * 3),
        model_prefix=str(folder / "m"),
        vocab_size=20,
        hard_vocab_limit=False,
        normalization_rule_tsv=str(table),
        minloglevel=2,
    )
    proto = sentencepiece_model_pb2.ModelProto()
    proto.ParseFromString((folder / "m.model").read_bytes())
    return bytes(proto.normalizer_spec.precompiled_charsmap)


def test_a_charsmap_is_read_back_as_the_rules_it_was_made_of(tmp_path: Path) -> None:
    rules = {
        "a\u0301": "á",
        "a\u0302\u0301": "ấ",
        "ﬁ": "fi",
        "\u200b": " ",
        "\x01": "",
        "가": "나",
        "😀": "x",
        "abc": "ab",
    }
    assert read_charsmap(charsmap_of(tmp_path, rules)) == rules


def test_barriers_go_where_no_rule_joins() -> None:
    # Tails are acute, circumflex and dot below; circumflex + acute is the only pair of them.
    pattern = barrier_pattern(["a\u0301", "a\u0302\u0301", "e\u0323", "½"])
    mark = tokenizers.normalizers.Replace(tokenizers.Regex(pattern), "|")
    cases = {
        "a\u0301": "a\u0301",
        "e\u0302\u0301": "e\u0302\u0301",
        "x\u0301": "x|\u0301",
        "½\u0301": "½|\u0301",
        "a\u0301\u0323": "a\u0301|\u0323",
        "a\u0651": "a|\u0651",
        "a\u0651\u0301": "a|\u0651|\u0301",
        "\u0301a": "\u0301a",
        "plain": "plain",
    }
    assert {text: mark.normalize_str(text) for text in cases} == cases


def test_normalised_text_is_sentencepieces(tmp_path: Path) -> None:
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(["a b c d e"] * 3),
        model_prefix=str(tmp_path / "m"),
        vocab_size=20,
        hard_vocab_limit=False,
        minloglevel=2,
    )
    from sentencepiece import sentencepiece_model_pb2

    proto = sentencepiece_model_pb2.ModelProto()
    proto.ParseFromString((tmp_path / "m.model").read_bytes())
    normalizer = build_normalizer(proto.normalizer_spec.precompiled_charsmap)
    cases = {
        "  ﬁ  ｅ\u0301\t": " fi é",
        "～~": "～~",
        "x\u200by": "x y",
        "a\x01\u0301": "a\u0301",
        "Việt": "Việt",
        "²\u0323": "2\u0323",
    }
    assert {text: normalizer.normalize_str(text) for text in cases} == cases
