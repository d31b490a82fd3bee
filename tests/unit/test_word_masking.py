"""Whole words and spans: exact rates whatever the words are, whole units, one draw a unit, keyed by row."""

from dataclasses import replace

import numpy as np
import pytest
from test_masking import MASK, VOCAB, batch_of, within_three_sigma

from data_pipeline.mask_rate import MaskRate
from data_pipeline.word_masking import MAX_SPAN_WORDS, SPAN_GEOMETRIC_P, SpanMasker, WholeWordMasker

PAD, UNK, CLS, SEP = 0, 1, 2, 3
SPECIAL = {"pad": PAD, "unk": UNK, "cls": CLS, "sep": SEP, "mask": MASK}
# Every third id begins a word.
WORD_START = np.arange(VOCAB) % 3 == 0


def masker(kind, **settings):
    defaults = {"mask_rate": 0.15, "mask_token_rate": 0.8, "random_token_rate": 0.1, "seed": 0}
    return kind(word_start=WORD_START, special_token_ids=SPECIAL, vocab_size=VOCAB, **{**defaults, **settings})


def framed_rows(rows=600, width=512, seed=0):
    """Rows of [CLS] words [SEP], of two documents each, with some padding."""
    generator = np.random.default_rng(seed)
    ids = generator.integers(5, VOCAB, (rows, width))
    ids[:, [0, width // 2]] = CLS
    ids[:, [width // 2 - 1, width - 13]] = SEP
    ids[:, width - 12 :] = PAD
    return batch_of(ids)


def words_of(batch):
    """For each token the number of its word, in the flat order; special tokens are words of their own."""
    ids = batch.input_ids
    starts = WORD_START[ids] & (ids > MASK) | (ids == CLS) | (ids == SEP)
    starts[:, 0] = True
    return np.cumsum(starts.ravel()).reshape(ids.shape)


@pytest.mark.parametrize("kind", [WholeWordMasker, SpanMasker])
@pytest.mark.parametrize("rate", [0.05, 0.15, 0.5])
def test_the_rate_of_chosen_words_and_tokens_is_kept_within_three_sigma(kind, rate):
    plain = framed_rows()
    chosen = masker(kind, mask_rate=rate).apply(plain).labels != -100
    maskable = plain.input_ids > MASK
    assert not chosen[~maskable].any()
    # Words of a row depend on one another in spans, rows do not: the error is that of a mean over rows.
    rates = chosen.sum(axis=1) / maskable.sum(axis=1)
    assert abs(rates.mean() - rate) < 3 * rates.std() / np.sqrt(len(rates))
    # The ends of a row are chosen as often as its middle.
    edges = chosen[:, 1:4]
    assert abs(edges.mean() - rate) < 3 * edges.mean(axis=1).std() / np.sqrt(len(edges))


@pytest.mark.parametrize("kind", [WholeWordMasker, SpanMasker])
def test_a_word_is_chosen_whole_or_not_at_all(kind):
    plain = framed_rows(rows=50)
    chosen = masker(kind).apply(plain).labels != -100
    maskable = plain.input_ids > MASK
    words = words_of(plain)
    hits = np.bincount(words[maskable], weights=chosen[maskable])
    sizes = np.bincount(words[maskable])
    assert set(np.unique(hits[hits > 0] / sizes[hits > 0])) == {1.0}
    assert sizes[hits > 0].max() > 3


def test_word_starts_of_the_batch_go_before_the_vocabularys():
    plain = framed_rows(rows=20)
    all_one_word = np.zeros(plain.input_ids.shape, dtype=bool)
    chosen = masker(WholeWordMasker).apply(replace(plain, word_starts=all_one_word)).labels != -100
    shares = chosen[:, 1:].mean(axis=1)
    assert set(np.round(shares / shares.max(), 6)) == {0.0, 1.0}
    each_a_word = masker(WholeWordMasker).apply(replace(plain, word_starts=~all_one_word))
    by_token = super(WholeWordMasker, masker(WholeWordMasker))._choose(plain)
    assert np.array_equal(np.flatnonzero(each_a_word.labels != -100), by_token.place)


def test_an_unknown_piece_is_part_of_its_word_and_is_not_chosen():
    ids = [[CLS, 6, UNK, 7, 9, SEP] * 40]
    chosen = masker(WholeWordMasker, mask_rate=0.5).apply(batch_of(ids)).labels[0].reshape(-1, 6) != -100
    assert not chosen[:, 2].any()
    assert np.array_equal(chosen[:, 1], chosen[:, 3])
    assert not np.array_equal(chosen[:, 1], chosen[:, 4])


def test_the_tokens_of_a_word_are_replaced_one_by_one_and_those_of_a_span_alike():
    plain = framed_rows(rows=200)
    for kind, alike in ((WholeWordMasker, False), (SpanMasker, True)):
        masked = masker(kind, mask_token_rate=0.5, random_token_rate=0.0).apply(plain)
        chosen = masked.labels != -100
        runs = np.cumsum(np.diff(chosen.ravel().astype(int), prepend=0) == 1)[chosen.ravel()]
        # Runs that [SEP] [CLS] divides are two here and one span there: these are alike too.
        hidden = (masked.input_ids == MASK).ravel()[chosen.ravel()]
        share = np.bincount(runs, weights=hidden)[1:] / np.bincount(runs)[1:]
        assert bool(np.isin(share, [0.0, 1.0]).all()) == alike
        assert abs(share.mean() - 0.5) < 3 * share.std() / np.sqrt(len(share))


def test_span_lengths_are_geometric_and_cut_at_ten_words():
    words = np.full(400, 512)
    begins, ends = masker(SpanMasker)._spans(np.arange(400), words=words)
    # The first may be the rest of a span, the last may be cut by the row's end.
    inner = (begins > 0) & (ends < 512)
    lengths = (ends - begins)[inner]
    assert (lengths.min(), lengths.max()) == (1, MAX_SPAN_WORDS)
    share = SPAN_GEOMETRIC_P * (1 - SPAN_GEOMETRIC_P) ** np.arange(MAX_SPAN_WORDS)
    share /= share.sum()
    assert (share * np.arange(1, 11)).sum() == pytest.approx(3.8, abs=0.01)
    for length in range(1, MAX_SPAN_WORDS + 1):
        assert within_three_sigma((lengths == length).mean(), share[length - 1], lengths.size)
    assert ((begins[:, 1:] > ends[:, :-1]) | (ends[:, :-1] == 512)).all()  # a word at least between two


def test_every_word_of_a_row_is_within_a_span_with_the_same_probability():
    rows, words = 60_000, 12
    begins, ends = masker(SpanMasker)._spans(np.arange(rows), words=np.full(rows, words))
    for word in range(words):
        covered = ((begins <= word) & (word < ends)).any(axis=1)
        assert within_three_sigma(covered.mean(), 0.15, rows)


def test_a_span_makes_all_its_tokens_random_or_all_the_same():
    plain = framed_rows(rows=50)
    masked = masker(SpanMasker, mask_token_rate=0.0, random_token_rate=1.0).apply(plain)
    chosen = masked.labels != -100
    drawn = masked.input_ids[chosen]
    assert len(np.unique(drawn)) > VOCAB / 2  # a draw for each token, not for each span
    kept = masker(SpanMasker, mask_token_rate=0.0, random_token_rate=0.0).apply(plain)
    assert np.array_equal(kept.input_ids, plain.input_ids)


@pytest.mark.parametrize("kind", [WholeWordMasker, SpanMasker])
def test_a_rows_mask_depends_on_its_number_the_seed_and_the_phase_alone(kind):
    plain = framed_rows(rows=6, width=128)
    together = masker(kind).apply(plain)
    for row in range(6):
        alone = batch_of(plain.input_ids[[row, 0]], row_ids=[row, -1])
        found = masker(kind).apply(alone)
        assert np.array_equal(found.input_ids[0], together.input_ids[row])
        assert np.array_equal(found.labels[0], together.labels[row])
    others = [masker(kind, **change).apply(plain).labels for change in ({"seed": 1}, {"phase": 1})]
    assert not any(np.array_equal(labels, together.labels) for labels in others)
    assert not np.array_equal(*others)


@pytest.mark.parametrize("kind", [WholeWordMasker, SpanMasker])
def test_rows_of_padding_predict_nothing(kind):
    masked = masker(kind, mask_rate=0.7).apply(batch_of(np.zeros((3, 16)), row_ids=[-1, -1, -1]))
    assert (masked.predicted_tokens, (masked.labels == -100).all()) == (0, True)


@pytest.mark.parametrize("kind", [WholeWordMasker, SpanMasker])
def test_a_changing_rate_is_a_function_of_the_rows_number(kind):
    plain = framed_rows(rows=600)
    late = replace(plain, row_ids=plain.row_ids + 10**6)
    rising = masker(kind, mask_rate=MaskRate(0.1, 0.4, rows=10**6))
    assert (rising.apply(plain).labels != -100).mean() == pytest.approx(0.1 * 0.97, abs=0.01)
    assert (rising.apply(late).labels != -100).mean() == pytest.approx(0.4 * 0.97, abs=0.015)
