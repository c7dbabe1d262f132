"""Rotary positions against complex numbers in float64."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from effarch.nn.rotary import rotate
from tests.tolerances import TOL, assert_close


@pytest.mark.parametrize("fraction", [1.0, 0.5, 0.25])
def test_the_first_channels_are_rotated_by_halves(fraction):
    rng = np.random.default_rng(0)
    x, positions = rng.normal(size=(2, 7, 3, 16)), rng.integers(0, 100, (2, 7))
    width = int(16 * fraction)
    left, right, rest = np.split(x, [width // 2, width], axis=-1)
    speed = 50.0 ** (-2 * np.arange(width // 2) / width)
    turned = (left + 1j * right) * np.exp(1j * positions[..., None, None] * speed)
    expected = np.concatenate([turned.real, turned.imag, rest], axis=-1)
    with jax.enable_x64(True):
        found = rotate(jnp.asarray(x), jnp.asarray(positions, jnp.int32), 50.0, fraction=fraction)
        assert_close(found, expected, TOL.f64)


@pytest.mark.parametrize(("width", "fraction"), [(7, 1.0), (12, 0.25), (8, 0.1)])
def test_an_even_number_of_channels(width, fraction):
    with pytest.raises(ValueError, match="head_dim: expected head_dim.* to be even for rotary positions"):
        rotate(jnp.zeros((1, 2, 1, width)), jnp.zeros((1, 2), jnp.int32), fraction=fraction)
