from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from small_corpus import made_up_documents, small_tokenizer, write_lines

from data_pipeline.__main__ import main
from data_pipeline.build import build_shards
from data_pipeline.manifest import load_manifest
from data_pipeline.tokenizer import Tokenizer
from data_pipeline.verify_text import find_differences
from trainer.errors import UserError

DOCUMENTS = [*made_up_documents(300), "\u200b", *made_up_documents(100, seed=1)]


def _build(folder: Path, documents: list[str] = DOCUMENTS, **settings: Any) -> Path:
    text = write_lines(folder / "text.txt", documents)
    chosen = {"block_tokens": 500, "shard_tokens": 3000, "validation_fraction": 0.2, "workers": 1, "progress": False}
    build_shards([text], tokenizer=small_tokenizer(), out=folder / "shards", **{**chosen, **settings})
    return text


def _differences(folder: Path, text: Path, *, sample: int = 1000) -> list[str]:
    manifest = load_manifest(folder / "shards")
    return list(find_differences(folder / "shards", manifest=manifest, paths=[str(text)], sample=sample))


@pytest.mark.parametrize("deduplicate", [False, True])
def test_the_text_of_the_shards_differs_nowhere(tmp_path: Path, deduplicate: bool) -> None:
    text = _build(tmp_path, [*DOCUMENTS, *DOCUMENTS[50:60]], deduplicate=deduplicate)
    assert _differences(tmp_path, text) == []


def test_word_starts_are_compared_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    text = _build(tmp_path, DOCUMENTS[:40], word_starts="jieba", validation_fraction=0.0)
    assert _differences(tmp_path, text) == []
    monkeypatch.setattr(
        "data_pipeline.build_worker.batch_word_starts",
        lambda texts, offsets: np.ones(sum(map(len, offsets)), np.bool_),
    )
    found = _differences(tmp_path, text)
    assert found
    assert "holds other word starts: token " in found[0]


def test_a_changed_document_is_named_with_its_place(tmp_path: Path) -> None:
    text = _build(tmp_path, validation_fraction=0.0)
    changed = [*DOCUMENTS]
    changed[7] += " ba"
    (found,) = _differences(tmp_path, write_lines(text, changed))
    ids = Tokenizer.load(small_tokenizer()).encode_batch([DOCUMENTS[7], changed[7]])
    assert found == (
        f"{text}: document 8 of the text: train block 0, document 7 holds other tokens: "
        f"{len(ids[0])} of them, where the text gives {len(ids[1])}"
    )
    changed[7] = f"wo {DOCUMENTS[7]}"
    (found,) = _differences(tmp_path, write_lines(text, changed))
    assert "document 7 holds other tokens: token 0 is " in found


def test_only_the_drawn_documents_are_tokenized(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    text = _build(tmp_path, made_up_documents(400))
    encoded: list[str] = []
    encode = Tokenizer.encode_batch
    monkeypatch.setattr(Tokenizer, "encode_batch", lambda self, texts: (encoded.extend(texts), encode(self, texts))[1])
    assert _differences(tmp_path, text, sample=4) == []
    assert encoded == [made_up_documents(400)[place] for place in (0, 100, 200, 300)]


def test_missing_and_surplus_text_is_said(tmp_path: Path) -> None:
    text = _build(tmp_path)
    found = _differences(tmp_path, write_lines(text, DOCUMENTS[:-1]))
    assert found == [f"{text}: the text holds 400 documents, and 401 were built"]
    found = _differences(tmp_path, write_lines(text, ["ba", *DOCUMENTS]), sample=400)
    assert any("holds other tokens" in line for line in found)
    assert found[-1] == f"{text}: the text holds 402 documents, and 401 were built"


def test_the_command_tells_them_and_ends_with_1(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    text = _build(tmp_path)
    arguments = ["verify", str(tmp_path / "shards"), "--sample", "500", "--input", str(text)]
    assert main(arguments) == 0
    assert "all well" in capsys.readouterr().out
    write_lines(text, [*DOCUMENTS[:-1], "ba de ki"])
    assert main(arguments) == 1
    assert "document 401 of the text: " in capsys.readouterr().out
    assert main(arguments[:4]) == 2
    assert "--sample N and --input PATH... go together" in capsys.readouterr().err


def test_without_the_builds_record_it_is_refused(tmp_path: Path) -> None:
    text = _build(tmp_path)
    (tmp_path / "shards/build.json").unlink()
    with pytest.raises(UserError, match=r"build\.json, which says how the text was read and split, is missing"):
        _differences(tmp_path, text)
