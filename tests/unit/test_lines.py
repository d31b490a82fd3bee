from __future__ import annotations

import re
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from data_pipeline.lines import line_pieces, paragraph_pieces
from trainer.errors import UserError

PATH = Path("a.txt")
BLOCKS = st.lists(st.text("a \n\r", max_size=6).map(str.encode), max_size=8)


@given(BLOCKS)
def test_pieces_are_the_blocks_regrouped_at_line_ends(blocks: list[bytes]) -> None:
    pieces = list(line_pieces(iter(blocks), path=PATH, max_document_bytes=100))
    assert b"".join(pieces) == b"".join(blocks)
    assert all(piece.endswith(b"\n") for piece in pieces[:-1])
    assert b"" not in pieces


@given(BLOCKS)
def test_no_paragraph_is_cut_wherever_blocks_end(blocks: list[bytes]) -> None:
    lines = line_pieces(iter(blocks), path=PATH, max_document_bytes=100)
    pieces = list(paragraph_pieces(lines, path=PATH, max_document_bytes=100))
    assert b"".join(pieces) == b"".join(blocks)
    paragraphs = [part for piece in pieces for part in re.split(r"\n\s*\n", piece.decode()) if part.strip()]
    assert [p.split() for p in paragraphs] == [
        p.split() for p in re.split(r"\n\s*\n", b"".join(blocks).decode()) if p.strip()
    ]


def test_a_line_over_the_limit_is_named_with_its_size_without_being_held() -> None:
    blocks = [b"one\ntwo\nxxxx", *[b"x" * 10] * 1000, b"xx\nfour\n"]
    left = iter(blocks)
    with pytest.raises(UserError, match=r"a\.txt:3: one document of 10,006 bytes is over --max-document-bytes 50;"):
        list(line_pieces(left, path=PATH, max_document_bytes=50))


def test_a_line_of_exactly_the_limit_passes() -> None:
    assert list(line_pieces(iter([b"12345"]), path=PATH, max_document_bytes=5)) == [b"12345"]


def test_a_paragraph_over_the_limit_is_named_by_its_first_line() -> None:
    pieces = [b"one\n\n", *[b"line\n"] * 10]
    with pytest.raises(UserError, match=r"a\.txt:3: one document of 25 bytes"):
        list(paragraph_pieces(iter(pieces), path=PATH, max_document_bytes=20))
