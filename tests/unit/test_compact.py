from __future__ import annotations

import numpy as np
import numpy.typing as npt
from hypothesis import given
from hypothesis import strategies as st

from data_pipeline.compact import Bits, compact


@given(values=st.lists(st.booleans(), max_size=70), data=st.data())
def test_any_range_of_packed_truth_values_comes_back(values: list[bool], data: st.DataObject) -> None:
    start = data.draw(st.integers(0, len(values)))
    end = data.draw(st.integers(start, len(values)))
    bits = Bits.of(np.array(values, dtype=bool))
    found: npt.NDArray[np.bool_] = bits.between(start, end)
    assert found.dtype == np.bool_
    assert found.tolist() == values[start:end]
    assert bits.packed.nbytes == -(-len(values) // 8)


def test_numbers_take_four_bytes_where_all_fit_and_eight_where_one_does_not() -> None:
    small, large = np.array([0, 2**31 - 1]), np.array([1, 2**31])
    assert (compact(small).dtype, compact(small).tolist()) == (np.int32, small.tolist())
    assert (compact(large).dtype, compact(large).tolist()) == (np.int64, large.tolist())
    assert compact(np.zeros(0, dtype=np.int64)).dtype == np.int32
