"""Norms against float64."""

import jax.numpy as jnp
import numpy as np
import pytest

from effarch.nn.norm import RMSNorm
from tests.tolerances import TOL, assert_close


@pytest.mark.parametrize("plus_one", [False, True])
def test_rms_norm(plus_one):
    rng = np.random.default_rng(0)
    x, weight = rng.normal(size=(2, 5, 24)), 0.3 * rng.normal(size=24)
    norm = RMSNorm(24, eps=1e-3, plus_one=plus_one)
    assert (norm.weight[...] == (0 if plus_one else 1)).all()
    norm.weight[...] = jnp.asarray(weight, jnp.float32)
    expected = x / np.sqrt((x**2).mean(axis=-1, keepdims=True) + 1e-3) * (weight + plus_one)
    assert_close(norm(jnp.asarray(x, jnp.float32)), expected, TOL.f32_forward)


def test_one_is_not_added_in_low_precision():
    """1 + 2^-10 is 1 in bfloat16; the weight itself is not 0 there."""
    norm = RMSNorm(8, plus_one=True)
    norm.weight.set_value(jnp.full((8,), 2.0**-10, jnp.bfloat16))
    x = jnp.asarray(np.random.default_rng(0).normal(size=(1, 4, 8)), jnp.float32)
    assert_close(norm(x), RMSNorm(8)(x) * (1 + 2.0**-10), TOL.f32_forward)
