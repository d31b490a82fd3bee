import itertools

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from data_pipeline.packing import count_rows, cut_documents, plan_rows


def plan(lengths, *, max_seq_len=12, packing="packed", seed=0, epoch=0, block=0):
    return plan_rows(lengths, max_seq_len=max_seq_len, packing=packing, seed=seed, phase=0, epoch=epoch, block=block)


def rows_as_lengths(planned) -> list[list[int]]:
    framed = (planned.pieces.length[planned.piece] + 2).tolist()
    starts = planned.row_starts.tolist()
    return [framed[a:b] for a, b in itertools.pairwise(starts)]


def test_documents_longer_than_a_row_are_cut_into_consecutive_pieces():
    pieces = cut_documents([3, 25, 10], max_seq_len=12)
    assert pieces.document.tolist() == [0, 1, 1, 1, 2]
    assert pieces.start.tolist() == [0, 3, 13, 23, 28]
    assert pieces.length.tolist() == [3, 10, 10, 5, 10]


def test_best_fit_decreasing_fills_the_tightest_row():
    # Framed lengths 12, 9, 7, 5, 3 in rows of 12: 12 | 9+3 | 7+5.
    rows = rows_as_lengths(plan([10, 7, 5, 3, 1]))
    assert sorted(sorted(row) for row in rows) == [[3, 9], [5, 7], [12]]


def test_padded_gives_each_piece_its_own_row():
    assert sorted(rows_as_lengths(plan([3, 25], packing="padded"))) == [[5], [7], [12], [12]]


lengths_strategy = st.lists(st.integers(1, 40), min_size=1, max_size=60)


@given(lengths=lengths_strategy, epoch=st.integers(0, 3), packing=st.sampled_from(["packed", "padded"]))
def test_every_token_is_in_exactly_one_piece_and_every_piece_in_one_row(lengths, epoch, packing):
    planned = plan(lengths, epoch=epoch, packing=packing)
    assert sorted(planned.piece.tolist()) == list(range(len(planned.pieces.length)))
    covered = np.concatenate(
        [np.arange(s, s + n) for s, n in zip(planned.pieces.start, planned.pieces.length, strict=True)]
    )
    assert sorted(covered.tolist()) == list(range(sum(lengths)))
    assert planned.row_starts[0] == 0
    assert planned.row_starts[-1] == len(planned.piece)
    assert all(0 < sum(row) <= 12 for row in rows_as_lengths(planned))


@given(lengths=lengths_strategy, epoch=st.integers(0, 3), packing=st.sampled_from(["packed", "padded"]))
def test_the_number_of_rows_is_known_without_the_shuffle(lengths, epoch, packing):
    planned = plan(lengths, epoch=epoch, packing=packing)
    assert planned.num_rows == count_rows(lengths, max_seq_len=12, packing=packing)


def test_each_epoch_and_block_is_shuffled_anew_and_repeatably():
    lengths = np.full(50, 4)
    pieces = [plan(lengths, epoch=e, block=b).piece.tolist() for e, b in ((0, 0), (1, 0), (0, 1), (0, 0))]
    assert pieces[0] == pieces[3]
    assert pieces[0] != pieces[1]
    assert pieces[0] != pieces[2]


def test_real_lengths_fill_rows_of_512_to_more_than_0_995():
    lengths = np.random.default_rng(0).lognormal(5.0, 1.0, 450).astype(int) + 1
    lengths = lengths[np.cumsum(lengths) < 98_304]
    planned = plan(lengths, max_seq_len=512)
    used = planned.pieces.length.sum() + 2 * len(planned.pieces.length)
    assert used / (planned.num_rows * 512) > 0.995
