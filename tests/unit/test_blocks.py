from __future__ import annotations

import itertools

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from data_pipeline.blocks import BlockAssembler, ClosedBlock, EncodedDocuments, Position, default_block_tokens


def _assemble(chunks: list[list[int]], *, block_tokens: int) -> list[ClosedBlock]:
    """Blocks of chunks given by their documents' lengths; token values count up, document i is at place 2 i."""
    assembler = BlockAssembler(block_tokens=block_tokens)
    blocks = []
    first_token = first_document = 0
    for number, lengths in enumerate(chunks):
        tokens = np.arange(first_token, first_token + sum(lengths), dtype=np.uint32)
        documents = EncodedDocuments(tokens, np.array(lengths, np.uint32), np.arange(len(lengths), dtype=np.uint32) * 2)
        blocks += assembler.add(documents, chunk=number, documents_before=first_document)
        first_token += len(tokens)
        first_document += 2 * len(lengths)
    return [*blocks, *assembler.finish()]


def test_a_block_closes_before_the_document_that_would_pass_its_size() -> None:
    blocks = _assemble([[3, 4], [3, 1, 20, 2], [10, 1]], block_tokens=10)
    assert [block.lengths.tolist() for block in blocks] == [[3, 4, 3], [1], [20], [2], [10], [1]]
    assert np.concatenate([block.tokens for block in blocks]).tolist() == list(range(44))


def test_blocks_know_where_they_begin_and_end_in_the_input() -> None:
    blocks = _assemble([[3, 4], [3, 1]], block_tokens=10)
    assert [block.first_document for block in blocks] == [0, 6]
    # The documents lie at places 0 and 2 of chunks of 4: "behind" a document is the place after it.
    assert [block.end for block in blocks] == [Position(5, 1, 1), Position(7, 1, 3)]


@given(st.lists(st.lists(st.integers(1, 15), max_size=8), max_size=6), st.integers(1, 12))
def test_blocks_do_not_depend_on_where_chunks_end(chunks: list[list[int]], block_tokens: int) -> None:
    joined = [[length for chunk in chunks for length in chunk]]
    blocks = _assemble(chunks, block_tokens=block_tokens)
    again = _assemble(joined, block_tokens=block_tokens)
    assert [block.lengths.tolist() for block in blocks] == [block.lengths.tolist() for block in again]
    assert [block.tokens.tolist() for block in blocks] == [block.tokens.tolist() for block in again]
    for block, following in itertools.pairwise(blocks):
        assert len(block.tokens) <= block_tokens or len(block.lengths) == 1
        assert len(block.tokens) + int(following.lengths[0]) > block_tokens


def test_960_blocks_of_the_default_size_stay_under_200_megabytes() -> None:
    sizes = {dtype: default_block_tokens(np.dtype(dtype)) for dtype in ("uint16", "uint32")}
    assert sizes == {"uint16": 98_304, "uint32": 49_152}
    assert 960 * sizes["uint16"] * 2 == 960 * sizes["uint32"] * 4 == 188_743_680
