from __future__ import annotations

import json
import pickle
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import sentencepiece
from small_corpus import made_up_documents, small_tokenizer, write_lines

from data_pipeline.tokenizer import Tokenizer, train_tokenizer
from trainer.errors import UserError

SHARED_ZH = Path(__file__).resolve().parents[2].parent / "shared/data/corpus_zh.jsonl.gz"


@pytest.fixture
def text(tmp_path: Path) -> Path:
    return write_lines(tmp_path / "text.txt", made_up_documents(400))


def _train(text: Path, out: str = "tokenizer", **options: Any) -> Tokenizer:
    return train_tokenizer([text], out=text.parent / out, progress=False, **{"vocab_size": 200, **options})


def test_special_tokens_have_their_ids_and_text_never_yields_them() -> None:
    tokenizer = Tokenizer.load(small_tokenizer())
    assert tokenizer.special_token_ids == {"pad": 0, "unk": 1, "cls": 2, "sep": 3, "mask": 4}
    assert tokenizer.pieces()[:5] == ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    ids = (tokenizer.pad_id, tokenizer.unk_id, tokenizer.cls_id, tokenizer.sep_id, tokenizer.mask_id)
    assert ids == (0, 1, 2, 3, 4)
    (found,) = tokenizer.encode_batch(["[MASK] ba [CLS] [SEP] [PAD] <s> </s>"])
    assert not {0, 2, 3, 4} & set(found.tolist())


@pytest.mark.parametrize("model_type", ["unigram", "bpe"])
def test_ids_are_sentencepieces_own_and_decode_to_the_text(text: Path, model_type: str) -> None:
    tokenizer = _train(text, model_type=model_type)
    documents = ["ba deki", "", "12 lo"]
    plain = sentencepiece.SentencePieceProcessor(model_file=str(tokenizer.folder / "spiece.model"))
    encoded = tokenizer.encode_batch(documents)
    assert [ids.tolist() for ids in encoded] == plain.encode(documents)
    assert all(ids.dtype == np.int32 for ids in encoded)
    assert [tokenizer.decode(ids) for ids in encoded] == documents


def test_the_same_text_and_settings_give_the_same_files(text: Path) -> None:
    one, two = _train(text, "one"), _train(text, "two")
    for name in ("spiece.model", "bertline_tokenizer.json"):
        assert (one.folder / name).read_bytes() == (two.folder / name).read_bytes()


def test_the_seed_chooses_the_sampled_lines(text: Path) -> None:
    hashes = {_train(text, f"out{seed}", seed=seed, max_sentences=100).sha256 for seed in (0, 1)}
    assert len(hashes) == 2


def test_the_metadata_says_what_fixes_the_ids(text: Path) -> None:
    tokenizer = _train(text, seed=3)
    metadata = json.loads((tokenizer.folder / "bertline_tokenizer.json").read_text())
    assert metadata["vocab_size"] == tokenizer.vocab_size == len(tokenizer.pieces()) == 200
    assert metadata["sha256"] == tokenizer.sha256
    assert (metadata["seed"], metadata["training_threads"], metadata["character_coverage"]) == (3, 8, 0.9995)
    assert metadata["sentencepiece_version"] == sentencepiece.__version__


def test_the_number_of_threads_is_pinned_and_recorded_because_the_model_depends_on_it(
    text: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pinned = _train(text)
    monkeypatch.setattr("data_pipeline.tokenizer.TRAINING_THREADS", 1)
    other = _train(text, "other")
    assert other.sha256 != pinned.sha256
    assert json.loads((other.folder / "bertline_tokenizer.json").read_text())["training_threads"] == 1


def test_training_says_nothing_on_stderr(text: Path, capfd: pytest.CaptureFixture[str]) -> None:
    _train(text)
    assert capfd.readouterr() == ("", "")


def test_a_pickled_tokenizer_is_its_folders_name() -> None:
    tokenizer = Tokenizer.load(small_tokenizer())
    pickled = pickle.dumps(tokenizer)
    assert len(pickled) < 500
    assert pickle.loads(pickled).encode_batch(["ba de"])[0].tolist() == tokenizer.encode_batch(["ba de"])[0].tolist()


def test_text_longer_than_sentencepiece_takes_is_learnt_from(tmp_path: Path) -> None:
    text = write_lines(tmp_path / "text.txt", [" ".join(made_up_documents(400))])
    assert _train(text, vocab_size=120).vocab_size == 120


@pytest.mark.parametrize("model_type", ["unigram", "bpe"])
def test_too_large_a_vocabulary_names_the_largest_that_fits(tmp_path: Path, model_type: str) -> None:
    text = write_lines(tmp_path / "text.txt", ["hello world foo bar"] * 10)
    with pytest.raises(UserError, match="--vocab-size 5000 is larger than this text allows") as refused:
        _train(text, vocab_size=5000, model_type=model_type)
    largest = int(str(refused.value).partition("fits is ")[2].partition(":")[0])
    assert _train(text, vocab_size=largest, model_type=model_type).vocab_size == largest


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"vocab_size": 5}, "leaves no room"),
        ({"vocab_size": 12}, "is smaller than the .* characters"),
        ({"character_coverage": 1.5}, "outside"),
        ({"document": "blank-line", "text_field": "text", "max_document_bytes": 3}, "over --max-document-bytes 3"),
    ],
)
def test_settings_that_cannot_work_are_refused(text: Path, options: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message) as refused:
        _train(text, **options)
    assert "\n" not in str(refused.value)
    assert not (text.parent / "tokenizer").exists()


def test_blank_input_and_a_finished_tokenizer_are_refused(text: Path) -> None:
    _train(text)
    with pytest.raises(UserError, match="already holds a tokenizer"):
        _train(text)
    text.write_text("\n \n")
    with pytest.raises(UserError, match="holds no document"):
        _train(text, "other")


def test_an_unfinished_or_damaged_tokenizer_is_refused(tmp_path: Path) -> None:
    folder = tmp_path / "tokenizer"
    with pytest.raises(UserError, match="does not exist"):
        Tokenizer.load(folder)
    shutil.copytree(small_tokenizer(), folder)
    metadata = (folder / "bertline_tokenizer.json").read_bytes()
    (folder / "bertline_tokenizer.json").write_bytes(metadata[:20])
    with pytest.raises(UserError, match="is damaged"):
        Tokenizer.load(folder)
    (folder / "bertline_tokenizer.json").unlink()
    with pytest.raises(UserError, match=r"it has no bertline_tokenizer\.json"):
        Tokenizer.load(folder)
    (folder / "bertline_tokenizer.json").write_bytes(metadata)
    model = bytearray((folder / "spiece.model").read_bytes())
    model[-1] ^= 1
    (folder / "spiece.model").write_bytes(model)
    with pytest.raises(UserError, match=r"spiece\.model is damaged"):
        Tokenizer.load(folder)


@pytest.mark.skipif(not SHARED_ZH.exists(), reason=f"needs the shared Chinese corpus ({SHARED_ZH.name})")
def test_chinese_text_comes_back(tmp_path: Path) -> None:
    tokenizer = train_tokenizer([SHARED_ZH], out=tmp_path / "zh", vocab_size=5000, max_sentences=3000, progress=False)
    (ids,) = tokenizer.encode_batch(["我们的祖国"])
    assert tokenizer.decode(ids) == "我们的祖国"
    assert 1 not in ids


def test_unigram_scores_are_multiples_of_1_256_so_that_their_sums_are_exact(text: Path) -> None:
    tokenizer = train_tokenizer([text], out=text.parent / "exact", vocab_size=60)
    scores = [tokenizer.processor.get_score(token) for token in range(tokenizer.vocab_size)]
    assert any(score != 0 for score in scores)
    assert all(score * 256 == int(score * 256) for score in scores)


def test_a_sample_of_no_sentence_is_refused(text: Path) -> None:
    with pytest.raises(UserError, match="--max-sentences 0 is not positive"):
        train_tokenizer([text], out=text.parent / "none", vocab_size=60, max_sentences=0)
