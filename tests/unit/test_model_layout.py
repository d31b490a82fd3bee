"""The flat layout: every real token once, documents whole, equal lengths side by side, and back."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from trainer.model.layout import TokenLayout, document_offsets

# Row 0: a document of 3, one of 1, two of padding. Row 1: padding between two documents of 2 and 3... tokens.
DOCUMENT_IDS = torch.tensor([[1, 1, 1, 2, 0, 0], [1, 1, 0, 2, 2, 2]])


def test_documents_are_sorted_by_length_and_keep_their_order_within_a_length() -> None:
    layout = TokenLayout.from_document_ids(DOCUMENT_IDS)
    assert layout.index.tolist() == [3, 6, 7, 0, 1, 2, 9, 10, 11]
    assert layout.groups == ((1, 1), (1, 2), (2, 3))
    assert layout.num_documents == 4


def test_equal_ids_in_neighbouring_rows_are_two_documents() -> None:
    assert TokenLayout.from_document_ids(torch.ones(3, 4, dtype=torch.int32)).groups == ((3, 4),)


def test_a_batch_of_padding_alone_is_empty() -> None:
    layout = TokenLayout.from_document_ids(torch.zeros(2, 5, dtype=torch.int64))
    assert layout.index.shape == (0,)
    assert layout.groups == ()
    assert layout.first_tokens().shape == (0,)
    assert layout.scatter(torch.ones(0, 3), shape=(2, 5)).shape == (2, 5, 3)


def test_first_tokens_follow_the_rows_not_the_lengths() -> None:
    layout = TokenLayout.from_document_ids(DOCUMENT_IDS)
    assert layout.index[layout.first_tokens()].tolist() == [0, 3, 6, 9]


def test_scatter_puts_flat_tokens_back_and_zeros_at_padding() -> None:
    layout = TokenLayout.from_document_ids(DOCUMENT_IDS)
    values = torch.arange(1, 13).reshape(2, 6)
    assert layout.scatter(layout.flatten(values), shape=(2, 6)).tolist() == [[1, 2, 3, 4, 0, 0], [7, 8, 0, 10, 11, 12]]


def test_offsets_bound_each_document() -> None:
    assert document_offsets(((2, 1), (1, 4))) == [0, 1, 2, 6]
    assert document_offsets(()) == [0]


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 4), st.integers(1, 9), st.randoms(use_true_random=False))
def test_any_batch_is_covered_once_in_whole_documents(rows: int, width: int, random: object) -> None:
    ids = np.array([_random_row(width, random) for _ in range(rows)])
    layout = TokenLayout.from_document_ids(torch.from_numpy(ids))
    assert sorted(layout.index.tolist()) == np.flatnonzero(ids).tolist()
    assert [length for _, length in layout.groups] == sorted({length for _, length in layout.groups})
    offsets = document_offsets(layout.groups)
    for start, end in pairwise(offsets):
        places = layout.index[start:end].numpy()
        assert (np.diff(places) == 1).all()
        assert len({(place // width, ids.flat[place]) for place in places.tolist()}) == 1


def _random_row(width: int, random: object) -> list[int]:
    row: list[int] = []
    document = 0
    while len(row) < width:
        padding = random.random() < 0.3  # type: ignore[attr-defined]
        document += not padding
        row += [0 if padding else document] * random.randint(1, 4)  # type: ignore[attr-defined]
    return row[:width]
