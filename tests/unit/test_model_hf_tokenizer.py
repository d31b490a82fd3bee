"""The exported tokenizer gives sentencepiece's ids: real text, nasty text, any text."""

from __future__ import annotations

import gzip
import json
import random
import sys
import unicodedata
from pathlib import Path
from typing import Any

import pytest
import sentencepiece
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from small_corpus import small_tokenizer

from trainer.errors import UserError
from trainer.model.hf_tokenizer import SPECIAL_TOKENS, build_tokenizer, export_tokenizer, read_sentencepiece

pytest.importorskip("tokenizers", reason="needs tokenizers: pip install 'bertline[hf]'")

SHARED_DATA = Path(__file__).resolve().parents[3] / "shared" / "data"
CLS, SEP = 2, 3
TEXT = [
    "The quick brown fox jumps over the lazy dog, and the dog sleeps on.",
    "Encoders are trained on packed rows; a row holds several documents.",
    "It was the best of times, it was the worst of times... 1859!",
    "ﬁne words — “quoted” — cost nothing: 100 % free, e.g. 3.14 or 2,718",
    "在 明 月 光 下，疑是地上霜。举头望明月，低头思故乡。",
    "Tiếng Việt, naïve café, Ångström, 한국어 단어 그리고 문장",
] * 3
NASTY = [
    "",
    " ",
    " \t \u3000 \n",
    "\ttabs\tand\ttabs\t",
    "  two  spaces  inside  and  around  ",
    "line\r\nbreaks\n\nhere",
    "emoji 😀😀 😀 👨‍👩‍👧 👍🏽 🇩🇪 1\ufe0f\u20e3",
    "\U00013000\U00013001 \U00013002\U00013003x\U00013004",
    "ﬁ ½ ² Å ™ ㈱ Ⅷ ﷺ … ª",
    "ＡＢＣ１２３　ｆｕｌｌ～ｗｉｄｔｈ～～ ~",
    "ｶﾞｷﾞｸﾞ ﾊﾟﾋﾟ が か\u3099 ハ\u309a",
    "ideographic\u3000space\u3000\u3000twice",
    "zero\u200bwidth\u200c\u200djoin\ufeff\u2060end\u00ad",
    "nbsp\u00a0thin\u2009hair\u200aogham\u1680line\u2028para\u2029",
    "ctrl\x01\x02\x1f\x7f\x80\x9f end\ufffd",
    "▁literal ▁▁ marks▁",
    unicodedata.normalize("NFD", "Tiếng Việt rất đẹp, naïve café, 한국어 각"),
    "a\u0323\u0302 a\u0302\u0323 ｅ\u0301 ﬁ\u0301 ²\u0323 \u3000\u0301x \u0301start",
    "שָׁלוֹם מُحَمَّد بِسْمِ क्षि ก็ นี้ \u0651\u064e",
    "x" * 300,
    "-" * 71 + " " + "." * 23 + "!?" * 31,
    "aaaaaaaaaaaaaaab llllllllll 000000000000",
    "[CLS [PAD ]MASK[ <unk> <s> </s>",
]


def train(folder: Path, text: list[str], *, model_type: str, vocab_size: int) -> Path:
    folder.mkdir(parents=True)
    names = list(SPECIAL_TOKENS.values())
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(text),
        model_prefix=str(folder / "spiece"),
        model_type=model_type,
        vocab_size=vocab_size,
        hard_vocab_limit=False,
        character_coverage=0.9995,
        **{f"{kind}_id": number for number, kind in enumerate(("pad", "unk", "bos", "eos"))},
        **{f"{kind}_piece": name for kind, name in zip(("pad", "unk", "bos", "eos"), names, strict=False)},
        control_symbols=["[MASK]"],
        num_threads=1,
        max_sentence_length=100_000,
        minloglevel=2,
    )
    return folder


class Pair:
    """A sentencepiece model and its export."""

    def __init__(self, folder: Path, *, score_grid: int | None = None) -> None:
        self.proto = read_sentencepiece(folder / "spiece.model")
        if score_grid is not None:
            for piece in self.proto.pieces:
                piece.score = round(piece.score * score_grid) / score_grid
        self.sentencepiece = sentencepiece.SentencePieceProcessor(model_proto=self.proto.SerializeToString())
        self.exported = build_tokenizer(self.proto)

    def assert_equal_ids(self, text: str) -> None:
        expected = [CLS, *self.sentencepiece.encode(text), SEP]
        assert self.exported.encode(text).ids == expected, (ascii(text[:200]), self.exported.encode(text).tokens[:50])


@pytest.fixture(scope="module", params=["unigram", "bpe"])
def pair(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Pair:
    vocab_size = {"unigram": 230, "bpe": 300}[request.param]
    folder = train(tmp_path_factory.mktemp("tok") / "small", TEXT, model_type=request.param, vocab_size=vocab_size)
    return Pair(folder, score_grid=256)


@pytest.mark.parametrize("text", NASTY)
def test_nasty_text_has_equal_ids(pair: Pair, text: str) -> None:
    pair.assert_equal_ids(text)


@settings(max_examples=300, deadline=None)
@given(st.text(st.characters(exclude_categories=("Cs", "Cn", "Co")), max_size=30))
def test_any_text_has_equal_ids(pair: Pair, text: str) -> None:
    # Written out, they are special tokens here and ordinary text to sentencepiece: so that a person can write [MASK].
    assume(not any(name in text for name in SPECIAL_TOKENS.values()))
    pair.assert_equal_ids(text)


@settings(max_examples=300, deadline=None)
@given(
    st.text(
        st.sampled_from("aeiｅ １ｶﾞハゝ가각각～\u0301\u0323\u0302\u3099\u0651\u05bc\u200c\u200d\ufe0f\u3000½ﬁ👍🏽कि")
    )
)
def test_any_mixture_of_letters_and_marks_has_equal_ids(pair: Pair, text: str) -> None:
    pair.assert_equal_ids(text)


@settings(max_examples=200, deadline=None)
@given(st.lists(st.tuples(st.text(st.sampled_from("estaho,.1l- "), min_size=1, max_size=3), st.integers(1, 40))))
def test_runs_and_ties_have_equal_ids(pair: Pair, runs: list[tuple[str, int]]) -> None:
    pair.assert_equal_ids("".join(unit * times for unit, times in runs))


def test_pieces_glued_at_random_have_equal_ids(pair: Pair) -> None:
    generator = random.Random(0)
    pieces = [piece.piece.replace("▁", " ") for piece in pair.proto.pieces[5:]]
    for _ in range(500):
        pair.assert_equal_ids("".join(generator.choices(pieces, k=12)))


def test_the_mask_takes_the_blank_before_it_and_what_follows_it_goes_on(pair: Pair) -> None:
    whole = pair.exported.encode("on the [MASK] dog.")
    assert whole.ids.count(4) == 1
    assert whole.ids == [CLS, *pair.sentencepiece.encode("on the"), 4, *pair.sentencepiece.encode("dog."), SEP]
    # "[MASK]s": a continuation, not a new word.
    continued = pair.exported.encode("on the [MASK], the dog", add_special_tokens=False)
    after = continued.tokens[continued.ids.index(4) + 1]
    assert after.startswith(",")


def test_pairs_are_laid_out_as_bert_does(pair: Pair) -> None:
    both = pair.exported.encode("the dog", "the fox")
    first, second = pair.sentencepiece.encode("the dog"), pair.sentencepiece.encode("the fox")
    assert both.ids == [CLS, *first, SEP, *second, SEP]
    assert both.type_ids == [0] * (len(first) + 2) + [1] * (len(second) + 1)


def test_transformers_knows_the_exported_tokenizer(tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers", reason="needs transformers: pip install 'bertline[hf]'")
    folder = train(tmp_path / "tok", TEXT, model_type="unigram", vocab_size=230)
    out = tmp_path / "out"
    out.mkdir()
    size = export_tokenizer(folder, out=out, max_seq_len=16)
    loaded = transformers.AutoTokenizer.from_pretrained(out)
    assert len(loaded) == size
    specials = [loaded.pad_token_id, loaded.unk_token_id, loaded.cls_token_id, loaded.sep_token_id]
    assert [*specials, loaded.mask_token_id] == [0, 1, 2, 3, 4]
    assert loaded.model_max_length == 16
    text = "The quick brown fox, e.g. 2,718"
    processor = sentencepiece.SentencePieceProcessor(model_file=str(folder / "spiece.model"))
    batch = loaded([text, "dog"], padding=True)
    assert batch["input_ids"][0] == [CLS, *processor.encode(text), SEP]
    assert batch["attention_mask"][1][-1] == 0
    assert set(batch) == {"input_ids", "token_type_ids", "attention_mask"}
    assert loaded.decode(batch["input_ids"][0], skip_special_tokens=True) == text
    assert len(loaded("the dog " * 50, truncation=True)["input_ids"]) == 16


@pytest.mark.parametrize("language", ["en", "zh"])
@pytest.mark.parametrize("model_type", ["unigram", "bpe"])
def test_a_thousand_real_lines_have_equal_ids(language: str, model_type: str, tmp_path: Path) -> None:
    corpus = SHARED_DATA / f"corpus_{language}.jsonl.gz"
    if not corpus.is_file():
        pytest.skip(f"needs {corpus.name} in ../shared/data")
    with gzip.open(corpus, "rt", encoding="utf-8") as file:
        lines = [json.loads(file.readline())["text"] for _ in range(1000)]
    text = [line.replace("\n", " ")[:1000] for line in lines]
    real = Pair(train(tmp_path / "tok", text, model_type=model_type, vocab_size=4000))
    for line in lines:
        real.assert_equal_ids(line)


@pytest.mark.parametrize("model_type", ["unigram", "bpe"])
def test_unknown_characters_fuse_across_blanks_where_the_blank_is_unknown_too(model_type: str, tmp_path: Path) -> None:
    generator = random.Random(0)
    text = ["".join(generator.choices("的一是在不了有和人这中大为上个国", k=2500)) for _ in range(4)]
    pair = Pair(train(tmp_path / "tok", text, model_type=model_type, vocab_size=60))
    assert "▁" not in {piece.piece for piece in pair.proto.pieces}
    for line in ("x y", "😀 😀 的", "的 x 的"):
        pair.assert_equal_ids(line)


def change(proto: Any, **values: Any) -> None:
    for path, value in values.items():
        section, _, field = path.partition("__")
        setattr(getattr(proto, section), field, value)


@pytest.mark.parametrize(
    ("path", "value", "reason"),
    [
        ("trainer_spec__model_type", 3, "model type 3"),
        ("trainer_spec__byte_fallback", True, "byte_fallback is on"),
        ("trainer_spec__treat_whitespace_as_suffix", True, "treat_whitespace_as_suffix is on"),
        ("normalizer_spec__name", "identity", "normalisation is 'identity'"),
        ("normalizer_spec__add_dummy_prefix", False, "add_dummy_prefix is off"),
        ("normalizer_spec__remove_extra_whitespaces", False, "remove_extra_whitespaces is off"),
        ("normalizer_spec__escape_whitespaces", False, "escape_whitespaces is off"),
    ],
)
def test_what_cannot_be_expressed_is_refused(pair: Pair, tmp_path: Path, path: str, value: Any, reason: str) -> None:
    proto = type(pair.proto)()
    proto.CopyFrom(pair.proto)
    change(proto, **{path: value})
    (tmp_path / "spiece.model").write_bytes(proto.SerializeToString())
    with pytest.raises(UserError, match=reason):
        read_sentencepiece(tmp_path / "spiece.model")


def test_other_specials_and_other_kinds_of_pieces_are_refused(pair: Pair, tmp_path: Path) -> None:
    proto = type(pair.proto)()
    proto.CopyFrom(pair.proto)
    proto.pieces[4].piece = "<mask>"
    (tmp_path / "spiece.model").write_bytes(proto.SerializeToString())
    with pytest.raises(UserError, match="<mask>"):
        read_sentencepiece(tmp_path / "spiece.model")
    proto.CopyFrom(pair.proto)
    proto.pieces[9].type = 4
    (tmp_path / "spiece.model").write_bytes(proto.SerializeToString())
    with pytest.raises(UserError, match=r"piece types \[4\]"):
        read_sentencepiece(tmp_path / "spiece.model")


def test_a_broken_model_and_a_folder_without_one_are_refused_in_one_line(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="holds no tokenizer"):
        export_tokenizer(tmp_path, out=tmp_path, max_seq_len=8)
    (tmp_path / "spiece.model").write_bytes(b"\xff\xff not a model")
    with pytest.raises(UserError, match="is not a sentencepiece model"):
        export_tokenizer(tmp_path, out=tmp_path, max_seq_len=8)


def test_without_tokenizers_the_install_command_is_named(pair: Pair, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "tokenizers", None)
    with pytest.raises(UserError, match=r"pip install 'bertline\[hf\]'"):
        build_tokenizer(pair.proto)


def test_hugging_face_files_are_copied_as_they_are(tmp_path: Path) -> None:
    source, out = tmp_path / "source", tmp_path / "out"
    source.mkdir()
    out.mkdir()
    (source / "vocab.txt").write_text("[PAD]\n[UNK]\n")
    (source / "tokenizer_config.json").write_text('{"do_lower_case": true}')
    (source / "other.txt").write_text("not a tokenizer's file")
    assert export_tokenizer(source, out=out, max_seq_len=8) is None
    assert sorted(path.name for path in out.iterdir()) == ["tokenizer_config.json", "vocab.txt"]
    assert (out / "vocab.txt").read_text() == "[PAD]\n[UNK]\n"


def test_a_full_disk_is_told_as_the_operating_system_tells_it(tmp_path: Path) -> None:
    (tmp_path / "tokenizer.json").symlink_to("/dev/full")
    with pytest.raises(OSError, match="No space left on device"):
        export_tokenizer(small_tokenizer(), out=tmp_path, max_seq_len=8)
