import jax
import jax.numpy as jnp
import numpy as np
import pytest

from effarch.data import shift

BATCH = {
    "tokens": np.asarray([[256, 5, 6, 256, 7, 0, 0], [9, 8, 7, 6, 5, 4, 3]], np.int32),
    "segment_ids": np.asarray([[1, 1, 1, 2, 2, 0, 0], [1, 1, 1, 1, 1, 1, 1]], np.int32),
    "loss_mask": np.asarray([[0, 1, 1, 1, 1, 1, 1], [0, 1, 0, 1, 1, 1, 1]], np.float32),
}


def check(inputs, targets, mask):
    np.testing.assert_array_equal(inputs, BATCH["tokens"])
    np.testing.assert_array_equal(targets, [[5, 6, 256, 7, 0, 0, 0], [8, 7, 6, 5, 4, 3, 0]])
    # Not across documents, not into padding, not where the target does not count, not beyond the row.
    np.testing.assert_array_equal(mask, [[1, 1, 0, 1, 0, 0, 0], [1, 0, 1, 1, 1, 1, 0]])
    assert mask.dtype == np.float32


def test_targets_are_the_next_tokens_of_the_same_document():
    check(*shift(BATCH))


def test_the_same_under_jit():
    check(*jax.jit(shift)({name: jnp.asarray(array) for name, array in BATCH.items()}))


def test_shapes_must_agree():
    with pytest.raises(ValueError, match=r"one shape \[B, T\], got \[\[2, 7\], \[2, 7\], \[2, 5\]\]"):
        shift({**BATCH, "loss_mask": BATCH["loss_mask"][:, :5]})
