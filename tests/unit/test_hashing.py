import numpy as np

from data_pipeline.hashing import derive_key, hash32_grid, hash64, high_half, limit32, low_half, permutation, scaled


def test_hash64_is_splitmix64():
    # The first outputs of SplitMix64 seeded with 1234567, as published with the reference implementation.
    expected = [6457827717110365317, 3203168211198807973, 9817491932198370423, 4593380528125082431]
    assert hash64(1234567, np.arange(4)).tolist() == expected


def test_keys_tell_purposes_types_and_boundaries_apart():
    keys = [derive_key("a", 1), derive_key("a", 2), derive_key("b", 1), derive_key("a", "1"), derive_key("a1")]
    assert len(set(keys)) == len(keys)


def test_keys_and_permutations_are_the_same_in_every_version():
    # A checkpoint's order is derived from these: a changed value would silently change every resumed run.
    assert derive_key("order", 7, 0) == 4157954434153473456
    assert permutation(3, 8).tolist() == [3, 0, 6, 4, 2, 5, 1, 7]


def test_grid_cells_depend_on_their_row_and_column_only():
    keys = hash64(5, np.arange(6))
    whole = hash32_grid(keys, 9)
    assert whole.shape == (6, 9)
    assert np.array_equal(hash32_grid(keys[2:4], 9), whole[2:4])
    assert np.array_equal(hash32_grid(keys, 5), whole[:, :5])


def test_grid_is_uniform_within_three_sigma():
    draws = hash32_grid(hash64(1, np.arange(400)), 500)
    share = (draws < 2**31).mean()
    assert abs(share - 0.5) < 3 * 0.5 / np.sqrt(draws.size)


def test_permutation_holds_every_number_once_and_depends_on_the_key():
    first, second = permutation(1, 1000), permutation(2, 1000)
    assert np.array_equal(np.sort(first), np.arange(1000))
    assert not np.array_equal(first, second)
    assert np.array_equal(first, permutation(1, 1000))


def test_a_draw_is_two_halves_which_are_scaled_to_any_bound():
    draws = np.array([0x00000001_FFFFFFFF, 0x80000000_00000000], dtype=np.uint64)
    assert high_half(draws).tolist() == [1, 1 << 31]
    assert low_half(draws).tolist() == [(1 << 32) - 1, 0]
    assert scaled(low_half(draws), 10).tolist() == [9, 0]
    assert scaled(high_half(draws), np.array([7, 7])).tolist() == [0, 3]
    assert [int(limit32(rate)) for rate in (0.0, 0.5, 1.0)] == [0, 1 << 31, 1 << 32]
