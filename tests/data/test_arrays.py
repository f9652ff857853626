import numpy as np
import pytest

from jaxgpt.data.arrays import batched


@pytest.mark.parametrize(
    ("N", "rows", "counts"),
    [(6, 3, [3, 3]), (7, 3, [3, 3, 1]), (2, 5, [2]), (1, 1, [1])],
)
def test_batches_have_one_shape_and_every_row_once(N, rows, counts):
    arrays = {"a": np.arange(N), "b": np.arange(2 * N).reshape(N, 2)}
    batches = list(batched(arrays, rows))
    assert [count for _, count in batches] == counts
    for name, array in arrays.items():
        parts = [batch[name] for batch, _ in batches]
        assert {part.shape for part in parts} == {(rows, *array.shape[1:])}
        real = np.concatenate([p[:c] for p, c in zip(parts, counts, strict=True)])
        np.testing.assert_array_equal(real, array)


def test_a_last_batch_is_filled_up_with_the_first_rows():
    *_, (last, count) = batched({"a": np.arange(7)}, 3)
    assert (last["a"].tolist(), count) == ([6, 0, 1], 1)
