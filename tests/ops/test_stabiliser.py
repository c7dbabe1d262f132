"""The running maximum of exponential gates, and the recurrence under it, against float64 without any stabiliser."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from effarch.ops.recurrence import Scalar, linear_recurrence, oracle
from effarch.ops.segments import as_segments
from effarch.ops.stabiliser import NOTHING, stabilise
from tests.ops.recurrence_cases import SWEEP, random_segments
from tests.tolerances import TOL, assert_close

B, T, H, K, V, EPS = 2, 70, 3, 4, 5, 0.1


def gates(seed):
    rng = np.random.default_rng(seed)
    log_decay = -rng.gamma(1.0, 1.0, size=(B, T, H)) * 10.0 ** rng.uniform(-3, 0.5, size=(B, 1, H))
    return rng, log_decay, 6 * rng.normal(size=(B, T, H)), 4 * rng.normal(size=(B, H))


def loop(log_decay, log_input, state, segments, start=0.0):
    """m by its definition, one token after the other."""

    def step(m, token):
        g, i, run, carried = token
        m = jnp.where((run > 0) & (run != carried), start, m)
        m = jnp.where(run > 0, jnp.maximum(g + m, i), m)
        return m, m

    runs = [x[..., None] for x in (segments.run, segments.carried_run)]
    _, found = jax.lax.scan(step, state, [jnp.moveaxis(x, 1, 0) for x in (log_decay, log_input, *runs)])
    return jnp.moveaxis(found, 0, 1)


@pytest.mark.parametrize("start", [0.0, NOTHING])
@pytest.mark.parametrize("seed", range(3))
def test_maximum_is_the_loop(seed, start):
    """Values and gradients, packed documents; in two pieces as in one."""
    rng, *arrays = gates(seed)
    ids = random_segments(rng, B, T)
    cotangent = rng.normal(size=(B, T, H))

    def fast(g, i, m):
        return stabilise(g, i, state=m, start=start, segment_ids=ids).maximum

    found, pull = jax.vjp(jax.jit(fast), *(jnp.asarray(a, jnp.float32) for a in arrays))
    gradients = pull(jnp.asarray(cotangent, jnp.float32))
    with jax.enable_x64(True):
        wide = [jnp.asarray(np.float32(a), jnp.float64) for a in arrays]
        true, pull = jax.vjp(jax.jit(lambda *a: loop(*a, as_segments(ids), start)), *wide)
        true_gradients = pull(jnp.asarray(np.float32(cotangent), jnp.float64))
    assert_close(found, true, TOL.f32_forward)
    for a, b in zip(gradients, true_gradients, strict=True):
        assert_close(a, b, TOL.f32_grad)
    g, i, m = (jnp.asarray(a, jnp.float32) for a in arrays)
    piece = jax.jit(stabilise)
    first = piece(g[:, :35], i[:, :35], state=m)
    second = piece(g[:, 35:], i[:, 35:], state=first.state)
    whole = piece(g, i, state=m)
    for name in ("log_decay", "log_input", "maximum"):
        pieces = jnp.concatenate([getattr(first, name), getattr(second, name)], axis=1)
        assert_close(pieces, getattr(whole, name), TOL.f32_forward, name)
    assert (whole.state == whole.maximum[:, -1]).all()


@pytest.mark.parametrize("seed", range(2))
def test_recurrence_scaled_back_is_the_plain_one(seed):
    """Outputs over a denominator that knows m, and the state: values and all gradients."""
    rng, log_decay, log_input, m = gates(seed)
    ids = random_segments(rng, B, T)
    q, k, v, state = (rng.normal(size=s) for s in ((B, T, H, K), (B, T, H, K), (B, T, H, V), (B, H, K, V)))
    arrays = (q, k, v, log_decay, log_input, state)

    def stabilised(q, k, v, g, i, state):
        gates = stabilise(g, i, state=jnp.asarray(m, g.dtype), segment_ids=ids)
        k = k * jnp.exp(gates.log_input)[..., None]
        o, state = linear_recurrence(q, k, v, transition=Scalar(gates.log_decay), state=state, segment_ids=ids)
        scale = jax.lax.stop_gradient(gates.maximum)
        bottom = jnp.exp(-scale) + EPS * jnp.exp(gates.maximum - scale)
        return o / bottom[..., None], state * jnp.exp(jax.lax.stop_gradient(gates.state))[..., None, None]

    def plain(q, k, v, g, i, state):
        start = jnp.asarray(np.float32(m), g.dtype)
        k = k * jnp.exp(i)[..., None]
        state = state * jnp.exp(start)[..., None, None]
        o, state = oracle(q, k, v, transition=Scalar(g), state=state, segment_ids=ids)
        return o / (1 + EPS * jnp.exp(loop(g, i, start, as_segments(ids))))[..., None], state

    values, pull = jax.vjp(jax.jit(stabilised), *(jnp.asarray(a, jnp.float32) for a in arrays))
    cotangents = jax.tree.map(lambda y: jnp.asarray(rng.normal(size=y.shape), jnp.float32), values)
    gradients = pull(cotangents)
    with jax.enable_x64(True):
        wide = [jnp.asarray(np.float32(a), jnp.float64) for a in arrays]
        true, pull = jax.vjp(jax.jit(plain), *wide)
        true_gradients = pull(jax.tree.map(lambda y: jnp.asarray(np.asarray(y), jnp.float64), cotangents))
    for a, b in zip(values, true, strict=True):
        assert_close(a, b, TOL.f32_forward)
    for a, b in zip(gradients, true_gradients, strict=True):
        assert_close(a, b, TOL.f32_grad)


def test_factors_are_at_most_one_whatever_the_gates():
    rng = np.random.default_rng(0)
    g = jnp.asarray(rng.choice(SWEEP, size=(B, T, H)), jnp.float32)
    i = jnp.asarray(rng.choice([-1e30, -1e4, -88.0, 0.0, 0.1, 88.0, 1e4, 1e30], size=(B, T, H)), jnp.float32)
    for ids in (None, random_segments(rng, B, T)):
        found = jax.jit(stabilise)(g, i, segment_ids=ids)
        assert (found.log_decay <= 0).all() and (found.log_input <= 0).all()
        assert all(jnp.isfinite(x).all() for x in jax.tree.leaves(found))
