import numpy as np
import pytest

from data_pipeline.batch import Batch
from data_pipeline.masking import TokenMasker

VOCAB, MASK = 1000, 4


def batch_of(input_ids, row_ids=None) -> Batch:
    input_ids = np.asarray(input_ids, dtype=np.int32)
    return Batch(
        row_ids=np.arange(len(input_ids)) if row_ids is None else np.asarray(row_ids),
        input_ids=input_ids,
        position_ids=np.zeros_like(input_ids),
        document_ids=np.ones_like(input_ids),
        labels=np.full(input_ids.shape, -100, dtype=np.int64),
        tokens=input_ids.size,
        predicted_tokens=0,
        sum_squared_lengths=0,
    )


def masker(**settings) -> TokenMasker:
    defaults = {"mask_rate": 0.15, "mask_token_rate": 0.8, "random_token_rate": 0.1, "seed": 0}
    return TokenMasker(vocab_size=VOCAB, special_ids=[0, 1, 2, 3, 4], mask_id=MASK, **{**defaults, **settings})


def big_batch(rows=400, width=512) -> Batch:
    return batch_of(np.random.default_rng(0).integers(5, VOCAB, (rows, width)))


def within_three_sigma(share: float, rate: float, draws: int) -> bool:
    return abs(share - rate) < 3 * np.sqrt(rate * (1 - rate) / draws)


@pytest.mark.parametrize("mask_rate", [0.05, 0.15, 0.4])
def test_rates_are_kept_within_three_sigma(mask_rate):
    plain = big_batch()
    masked = masker(mask_rate=mask_rate).apply(plain)
    chosen = masked.labels != -100
    n = int(chosen.sum())
    assert masked.predicted_tokens == n
    assert within_three_sigma(chosen.mean(), mask_rate, chosen.size)
    now, before = masked.input_ids[chosen], plain.input_ids[chosen]
    assert within_three_sigma((now == MASK).mean(), 0.8, n)
    # A random token is the original one in 1 of 1000 draws, and [MASK] in as many.
    assert within_three_sigma(((now != MASK) & (now != before)).mean(), 0.1 * (1 - 2 / VOCAB), n)


def test_random_tokens_are_drawn_from_the_whole_vocabulary():
    plain = big_batch()
    masked = masker(mask_rate=0.5, mask_token_rate=0.0, random_token_rate=1.0).apply(plain)
    drawn = masked.input_ids[masked.labels != -100]
    counts = np.bincount(drawn, minlength=VOCAB)
    assert len(counts) == VOCAB
    assert counts.min() > 0  # the special tokens' ids too
    assert abs(drawn.mean() - (VOCAB - 1) / 2) < 3 * VOCAB / np.sqrt(12 * drawn.size)


def test_labels_are_the_originals_and_other_tokens_are_untouched():
    plain = big_batch(rows=8)
    masked = masker().apply(plain)
    chosen = masked.labels != -100
    assert np.array_equal(masked.labels[chosen], plain.input_ids[chosen])
    assert np.array_equal(masked.input_ids[~chosen], plain.input_ids[~chosen])
    assert (plain.labels == -100).all()  # the given batch is not changed


def test_special_tokens_are_never_chosen():
    masked = masker(mask_rate=0.99).apply(batch_of([[0, 1, 2, 3, 4] * 100]))
    assert masked.predicted_tokens == 0
    assert (masked.labels == -100).all()


def test_a_rows_mask_depends_on_its_number_alone():
    plain = big_batch(rows=6)
    whole = masker().apply(plain)
    part = masker().apply(batch_of(plain.input_ids[[4, 1]], row_ids=[4, 1]))
    assert np.array_equal(part.input_ids, whole.input_ids[[4, 1]])
    assert np.array_equal(part.labels, whole.labels[[4, 1]])


def test_other_rows_seeds_and_phases_have_other_masks():
    ids = np.full((1, 512), 9)
    masks = [
        (m.apply(batch_of(ids, row_ids=[row])).labels != -100).tobytes()
        for m, row in ((masker(), 0), (masker(), 1), (masker(seed=1), 0), (masker(phase=1), 0))
    ]
    assert len(set(masks)) == 4


@pytest.mark.parametrize(("mask_token_rate", "random_token_rate", "expected"), [(1.0, 0.0, {MASK}), (0.0, 0.0, {9})])
def test_the_replacement_rates_reach_their_ends(mask_token_rate, random_token_rate, expected):
    masked = masker(mask_token_rate=mask_token_rate, random_token_rate=random_token_rate).apply(
        batch_of(np.full((4, 512), 9))
    )
    assert set(masked.input_ids[masked.labels != -100].tolist()) == expected
