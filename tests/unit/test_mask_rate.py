import numpy as np
import pytest
from test_masking import batch_of, masker, within_three_sigma

from data_pipeline.mask_rate import MaskRate


def test_the_rate_is_linear_in_the_row_and_then_constant():
    rate = MaskRate(0.3, 0.1, rows=100)
    assert rate.at(np.array([0, 25, 50, 100, 101, 10**15, -1])) == pytest.approx([0.3, 0.25, 0.2, 0.1, 0.1, 0.1, 0.3])
    assert rate.constant is None
    assert MaskRate(0.2, 0.2).constant == 0.2


def test_token_masks_follow_the_rate_of_their_row_within_three_sigma():
    rate = MaskRate(0.4, 0.1, rows=300)
    rows = np.repeat([0, 100, 200, 300, 5000], 80) + np.tile(np.arange(80), 5) * 10**6 * (np.arange(400) >= 320)
    ids = np.random.default_rng(0).integers(5, 1000, (400, 512))
    chosen = masker(mask_rate=rate).apply(batch_of(ids, row_ids=rows)).labels != -100
    for place, expected in ((0, 0.4), (80, 0.3), (160, 0.2), (240, 0.1)):
        # The rows of one number have one mask: one of them counts.
        assert within_three_sigma(chosen[place].mean(), expected, 512)
    assert within_three_sigma(chosen[320:].mean(), 0.1, 80 * 512)


def test_a_schedule_that_stands_still_masks_like_the_number():
    ids = np.random.default_rng(0).integers(5, 1000, (20, 128))
    changing = masker(mask_rate=MaskRate(0.9, 0.2, rows=1)).apply(batch_of(ids, row_ids=np.arange(1, 21)))
    constant = masker(mask_rate=0.2).apply(batch_of(ids, row_ids=np.arange(1, 21)))
    assert np.array_equal(changing.labels, constant.labels)
