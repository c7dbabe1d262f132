"""Lower bounds of forget gates: the formula, its ends, and that they cross layers."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from effarch.models.stack import Layout
from effarch.nn.lower_bound import LowerBound, bounded_forget
from tests.models import tiny
from tests.tolerances import TOL, assert_close


def paper(x, b):
    """In float64, as the papers write it: ``log f`` and ``1 - f``."""
    sigmoid = 1 / (1 + np.exp(-x))
    return np.log(b + (1 - b) * sigmoid), (1 - b) / (1 + np.exp(x))


@pytest.mark.parametrize("bound", [0.0, 1e-30, 1e-6, 0.5, 0.999999])
def test_gate_is_that_of_the_papers_to_its_ends(bound):
    x = np.concatenate([np.linspace(-70, 70, 281), [1e-8, -1e-8]])
    bound = float(np.float32(bound))
    log_f, rest = bounded_forget(jnp.asarray(x, jnp.float32)[None, :, None], jnp.full((1,), bound, jnp.float32))
    true_log_f, true_rest = paper(np.asarray(x, np.float32).astype(np.float64), bound)
    np.testing.assert_allclose(np.exp(log_f[0, :, 0], dtype=np.float64), np.exp(true_log_f), rtol=1e-5, atol=1e-37)
    np.testing.assert_allclose(rest[0, :, 0], true_rest, rtol=1e-5)
    assert (log_f <= 0).all()


def test_gradients_stay_finite_beyond_the_ends():
    x = jnp.asarray([-1e6, -1e3, -90.0, 0.0, 90.0, 1e3, 1e6], jnp.float32)[None, :, None]

    def loss(x, b):
        log_f, rest = bounded_forget(x, b)
        return (jnp.exp(log_f) + rest).sum()  # 1 for every x and b

    value, gradients = jax.value_and_grad(loss, argnums=(0, 1))(x, jnp.zeros((1,), jnp.float32))
    assert_close(value, 7.0, TOL.f32_forward)
    for gradient in gradients:
        assert jnp.isfinite(gradient).all() and abs(gradient).max() < 1e-5


def test_bounds_are_the_running_sum_of_the_softmax_over_layers():
    weight = np.random.default_rng(0).normal(size=(5, 3))
    first = LowerBound((3,), axes=(None,), index=0, count=5, first=True)
    first.weight[...] = jnp.asarray(weight, jnp.float32)
    parts = np.exp(weight) / np.exp(weight).sum(axis=0)
    expected = parts.cumsum(axis=0) - parts[0]
    bound, bounds = first(None)
    assert_close(bounds, expected, TOL.f32_forward)
    assert (bound == 0).all()
    for index in range(1, 5):
        later = LowerBound((3,), axes=(None,), index=index, count=5, first=False)
        assert not jax.tree.leaves(nnx.split(later, nnx.Param, ...)[1])
        assert_close(later(bounds)[0], expected[index], TOL.f32_forward)
    with pytest.raises(ValueError, match="bounds: expected"):
        later(None)


@pytest.mark.parametrize("name", ["hgrn", pytest.param("hgrn2", marks=pytest.mark.slow)])
def test_they_cross_layers(name):
    """A weight of layer i moves the layers from i on; layer 0's has a part in the others' through the softmax."""
    config = tiny.config("retnet", name, layers=6)
    graph, params = tiny.split(config)
    lm = nnx.merge(graph, params)
    assert lm.stack.layout == Layout(2, 2, 2, 0)
    bounds = [layer.mixer.bound for layer in lm.stack.layers()[1::2]]
    assert [bound.weight is None for bound in bounds] == [False, True, True]
    assert [int(bound.index[...]) for bound in bounds] == [1, 3, 5]
    tokens = tiny.tokens(1, 12)
    trained, fixed = nnx.split_state(params, nnx.Param, ...)

    @jax.jit
    def gradient(trained):
        def loss(trained, tap):
            taps = nnx.merge(graph, trained, fixed).hidden(tokens, taps=("mixer_out",)).taps["mixer_out"]
            return (taps[tap] * jnp.arange(tiny.DIM, dtype=jnp.float32)[None, None]).sum()

        return [jax.grad(loss)(trained, tap)["stack"]["prefix"][1]["mixer"]["bound"]["weight"][...] for tap in (1, 3)]

    for tap, found in zip((1, 3), gradient(trained), strict=True):
        norms = np.linalg.norm(np.asarray(found).reshape(6, -1), axis=1)
        assert (norms > 0).all(), tap
