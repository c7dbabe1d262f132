import jax
import jax.numpy as jnp
import numpy as np
import pytest

from effarch.ops.channels import over_tokens
from tests.tolerances import TOL, assert_close


@pytest.mark.parametrize("shape", [(5,), (3, 5), ()])
def test_a_broadcast_and_its_gradient(shape):
    rng = np.random.default_rng(0)
    weight = jnp.asarray(rng.normal(size=shape), jnp.float32)
    x = jnp.asarray(rng.normal(size=(2, 7, 3, 5)), jnp.float32)
    given = jnp.asarray(rng.normal(size=x.shape), jnp.float32)
    y, pull = jax.vjp(lambda w: over_tokens(w, x), weight)
    np.testing.assert_array_equal(y, np.broadcast_to(weight, x.shape))
    axes = tuple(range(x.ndim - len(shape)))
    assert_close(pull(given)[0], np.asarray(given, np.float64).sum(axes), TOL.f32_grad)


def test_gradients_of_bfloat16_are_summed_in_float32():
    """1 + 4096 * 2^-9: added one by one in bfloat16 the small ones would vanish."""
    given = jnp.full((4097, 1), 2.0**-9, jnp.bfloat16).at[0].set(1)
    _, pull = jax.vjp(lambda w: over_tokens(w, given), jnp.zeros((1,), jnp.float32))
    (gradient,) = pull(given)
    assert gradient.dtype == jnp.float32 and float(gradient[0]) == 9.0


def test_it_can_be_mapped():
    x, weights = jnp.ones((4, 3)), jnp.arange(6.0).reshape(2, 3)
    gradients = jax.vmap(jax.grad(lambda w: (over_tokens(w, x) ** 2).sum()))(weights)
    np.testing.assert_allclose(gradients, 8 * weights)
