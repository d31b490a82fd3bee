from __future__ import annotations

import gzip
import json
from pathlib import Path

import pytest

from data_pipeline.inputs import expand_inputs
from data_pipeline.streams import BLOCK_BYTES
from data_pipeline.text import TextOptions, check_options, iter_documents, read_chunks
from trainer.errors import UserError


def _documents(path: Path, options: TextOptions = TextOptions()) -> list[str]:  # noqa: B008 - frozen
    return list(iter_documents(expand_inputs([path]), options=options))


def _refusal(path: Path, options: TextOptions = TextOptions()) -> str:  # noqa: B008 - frozen
    with pytest.raises(UserError) as refused:
        _documents(path, options)
    assert "\n" not in str(refused.value)
    return str(refused.value)


def test_a_text_file_has_a_document_a_line_and_blank_lines_are_none(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    path.write_bytes("\ufeffone\r\n\n  two 水 \n \t\n\u3000\nthree".encode())
    assert _documents(path) == ["one", "two 水", "three"]


def test_blank_lines_separate_documents_when_asked(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    path.write_text("\n\none\n  two\n \t\n\nthree\n\n")
    assert _documents(path, TextOptions(document="blank-line")) == ["one\ntwo", "three"]


def test_json_lines_give_the_named_field(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl.gz"
    path.write_bytes(gzip.compress(b'{"body": "one\\ntwo"}\n\n  {"body": "", "text": 1}\n{"body": "caf\\u00e9"}'))
    assert _documents(path, TextOptions(text_field="body")) == ["one\ntwo", "", "café"]


def test_json_lines_that_only_one_of_two_parsers_takes_are_read(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_bytes('\ufeff{"text": " a "}\n{"text": "b", "x": NaN}\n \t\n{"text": "\\ud83d\\ude00"}\u00a0\n'.encode())
    assert _documents(path) == ["a", "b", "😀"]
    path.write_text('{"text": "a", "n": 123456789012345678901234567890}\n{"text": "b", "text": "c"}\n\r\n')
    assert _documents(path) == ["a", "c"]


@pytest.mark.parametrize("rule", ["line", "blank-line"])
def test_chunks_hold_whole_documents_and_know_their_lines(tmp_path: Path, rule: str) -> None:
    separator = "\n" if rule == "line" else "\n\n"
    documents = [f"{number} " + "x" * 1000 for number in range(2500)]
    path = tmp_path / "a.txt"
    path.write_text(separator.join(documents) + separator)
    options = TextOptions(document=rule)  # type: ignore[arg-type]
    (file,) = expand_inputs([path])
    chunks = list(read_chunks(file, options=options))
    assert len(chunks) == 3
    assert [chunk.input_position for chunk in chunks] == [BLOCK_BYTES, 2 * BLOCK_BYTES, path.stat().st_size]
    for chunk in chunks:
        number = int(chunk.payload.split()[0])  # type: ignore[union-attr]
        assert chunk.first_line == 1 + number * len(separator)  # type: ignore[union-attr]
    assert _documents(path, options) == documents


def test_invalid_utf8_is_named_by_line_and_byte_also_behind_the_first_chunk(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    good = b"0123456789\n" * 150_000
    path.write_bytes(good + b"ab\xff\n")
    refusal = _refusal(path)
    assert refusal.startswith(f"{path}:150001: invalid UTF-8 at byte {len(good) + 2} of the text (0xff: ")
    assert refusal.endswith("convert the file to UTF-8")


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ('{"text": "a"', "JSON does not parse"),
        ('{"text": "a"} {"text": "b"}', "JSON does not parse: Extra data"),
        ('["text"]', "a JSON list, where an object"),
        ('{"body": "a"}', "no field 'text'; the fields are 'body'"),
        ('{"text": 7}', "the field 'text' is int, not a string"),
        ('{"text": null}', "the field 'text' is NoneType"),
        ('{"text": "\\ud800"}', "half a surrogate pair"),
        ('{"text": ' + "9" * 5000 + "}", "a.jsonl:3: "),
        ("[" * 100_000, "JSON does not parse"),
    ],
)
def test_a_bad_json_line_is_named_by_its_number(tmp_path: Path, line: str, message: str) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text(f'{{"text": "good"}}\n\n{line}\n')
    refusal = _refusal(path)
    assert refusal.startswith(f"{path}:3: ")
    assert message in refusal


@pytest.mark.parametrize(
    ("name", "content", "rule", "line"),
    [
        ("a.txt", "short\n" + "x" * 21 + "\n", "line", 2),
        ("a.txt", "short\nshort\n\nxxxxxxxxxxx\nxxxxxxxxxxx\n", "blank-line", 4),
        ("a.jsonl", '{"text": "' + "x" * 21 + '"}\n', "line", 1),
    ],
)
def test_a_document_over_the_limit_is_named_with_its_size(
    tmp_path: Path, name: str, content: str, rule: str, line: int
) -> None:
    path = tmp_path / name
    path.write_text(content)
    options = TextOptions(document=rule, max_document_bytes=20)  # type: ignore[arg-type]
    assert _refusal(path, options).startswith(f"{path}:{line}: one document of 2")


def test_a_document_of_exactly_the_limit_passes(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    path.write_text("x" * 20 + "\n" + "水水水水水水\n")
    assert len(_documents(path, TextOptions(max_document_bytes=20))) == 2


def test_an_option_that_no_file_heeds_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text(json.dumps({"text": "a"}))
    with pytest.raises(UserError, match=r"blank-line applies to \.txt only"):
        check_options(expand_inputs([path]), options=TextOptions(document="blank-line"))
