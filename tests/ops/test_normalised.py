"""Linear attention with a denominator against its definition, a quadratic sum in float64."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from effarch.ops.features import Features
from effarch.ops.normalised import initial_state, normalised_attention, quotient
from effarch.ops.segments import as_segments
from tests.ops.recurrence_cases import random_segments
from tests.tolerances import TOL, assert_close

B, T, H, HK, F, V = 2, 72, 4, 2, 5, 3
FORMS = ("parallel", "chunkwise", "recurrent")


def draw(seed=0, spread=0.0):
    """Positive features; log-scales of keys that reach from -``spread`` to ``spread``. Exact in float32."""
    rng = np.random.default_rng(seed)
    q, k = rng.gamma(1.0, size=(B, T, H, F)), rng.gamma(1.0, size=(B, T, HK, F))
    drawn = q, k, rng.normal(size=(B, T, H, V)), rng.uniform(-spread, spread, size=(B, T, HK))
    return tuple(x.astype(np.float32).astype(np.float64) for x in drawn)


def definition(q, k, v, scale, ids):
    """``sum w v / sum w`` over the token's document so far, w divided by the largest of them."""
    k, scale = (np.repeat(x, H // HK, axis=2) for x in (k, scale))
    run = np.asarray(as_segments(jnp.asarray(ids)).run)
    o = np.zeros_like(v)
    for b, t in np.argwhere(run > 0):
        seen = np.flatnonzero(run[b, : t + 1] == run[b, t])
        c = scale[b, seen] - scale[b, seen].max(axis=0)
        w = np.einsum("hf,shf->sh", q[b, t], k[b, seen]) * np.exp(c)
        o[b, t] = np.einsum("sh,shv->hv", w, v[b, seen]) / w.sum(0)[:, None]
    return o


@partial(jax.jit, static_argnames=("form", "scaled"))
def run(q, k, v, scale, ids, state=None, form="chunkwise", scaled=True):
    keys = Features(k, scale if scaled else None)
    return normalised_attention(Features(q), keys, v, state=state, segment_ids=ids, form=form)


@partial(jax.jit, static_argnames=("form", "scaled"))
def gradients(q, k, v, scale, ids, form, scaled):
    def loss(q, k, v):
        return (run(q, k, v, scale, ids, form=form, scaled=scaled)[0] * weight).sum()

    weight = jnp.cos(v)
    return jax.grad(loss, argnums=(0, 1, 2))(q, k, v)


def cast(arrays, dtype):
    return [jnp.asarray(x, dtype) for x in arrays]


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("spread", [0.0, 3.0, 400.0])
def test_outputs_are_the_quadratic_sum(form, spread):
    """Documents, padding, shared key heads; log-scales far beyond the range of exp."""
    ids, given = random_segments(np.random.default_rng(6), B, T), draw(spread=spread)
    true = definition(*given, ids)
    with jax.enable_x64(True):
        wide = cast(given, jnp.float64)
        o, _ = run(*wide, ids, form=form, scaled=spread > 0)
        assert_close(o, true, TOL.f64)
        exact = gradients(*wide, ids, form="parallel", scaled=spread > 0)
    narrow = cast(given, jnp.float32)
    assert_close(run(*narrow, ids, form=form, scaled=spread > 0)[0], true, TOL.f32_forward)
    found = gradients(*narrow, ids, form=form, scaled=spread > 0)
    for x, y in zip(found, exact, strict=True):
        assert_close(x, y, TOL.f32_grad, floor=1.0)  # one key outweighs all others: little moves with q and k


def test_scales_that_move_together_move_nothing():
    """To the bit, for powers of two would not be enough: a document's keys a million times smaller or larger in log."""
    q, k, v, scale = cast(draw(spread=2.0), jnp.float32)
    scale = jnp.round(scale * 8) / 8  # so that adding to it is exact
    ids = jnp.asarray([[1] * 30 + [2] * 42] * 2)
    moved = scale + jnp.where(ids == 2, 1e4, -1e4)[..., None]
    assert (run(q, k, v, scale, ids)[0] == run(q, k, v, moved, ids)[0]).all()


@pytest.mark.parametrize("cut", [1, 36, 64])
def test_the_state_carries_the_maximum(cut):
    """Pieces, across documents that go on and end; a row of padding leaves the state as it is."""
    given = draw(spread=200.0)
    ids = np.asarray(random_segments(np.random.default_rng(6), B, T))
    true = definition(*given, ids)
    arrays = cast(given, jnp.float32)
    state = initial_state(B, H, HK, F, V, log_scaled=True)
    pieces, seen = [], np.ones(B, np.int32)
    for part in (slice(0, cut), slice(cut, T)):
        segments = as_segments(jnp.asarray(ids[:, part]), last_segment=jnp.asarray(seen))
        o, after = run(*(x[:, part] for x in arrays), segments, state)
        for x, y in zip(jax.tree.leaves(state), jax.tree.leaves(after), strict=True):
            assert (x.shape, x.dtype) == (y.shape, y.dtype)
        pieces.append(o)
        real = ids[:, part] > 0
        seen = np.where(real.any(1), ids[:, part][np.arange(B), real.shape[1] - 1 - real[:, ::-1].argmax(1)], seen)
        state = after
    assert_close(jnp.concatenate(pieces, axis=1), true, TOL.f32_forward)
    _, same = run(*arrays, jnp.zeros((B, T), jnp.int32), state)
    assert all((x == y).all() for x, y in zip(jax.tree.leaves(state), jax.tree.leaves(same), strict=True))


@pytest.mark.parametrize("form", FORMS)
def test_weights_that_all_vanish_give_zero_and_no_gradient(form):
    q, k, v, scale = cast(draw(), jnp.float32)
    q, k = q.at[:, 7].set(0), k.at[:, :5].set(0)
    o, pull = jax.vjp(lambda q, k, v: run(q, k, v, scale, None, form=form, scaled=False)[0], q, k, v)
    assert (o[:, [0, 4, 7]] == 0).all() and (jnp.abs(o[:, [5, 6, 8]]) > 0).any(axis=(2, 3)).all()
    for x in pull(jnp.ones_like(o)):
        assert jnp.isfinite(x).all()
    dq, _, dv = pull(jnp.zeros_like(o).at[:, 7].set(1))
    assert (dq == 0).all() and (dv == 0).all()


@pytest.mark.parametrize("size", [1e-27, 1e-20, 1.0, 1e20])
def test_quotients_of_small_sums_have_their_gradients(size):
    """The square of such a denominator is 0 in float32."""
    rng = np.random.default_rng(0)
    n, d = size * rng.normal(size=(4, 3)), size * rng.uniform(1, 2, size=(4, 1))
    o, pull = jax.vjp(quotient, *cast((n, d), jnp.float32))
    assert_close(o, n / d, TOL.f32_forward)
    weight = rng.normal(size=o.shape)
    dn, dd = pull(jnp.asarray(weight, jnp.float32))
    assert_close(size * dn, size * weight / d, TOL.f32_grad)
    assert_close(size * dd, -size * (weight * n).sum(-1, keepdims=True) / d**2, TOL.f32_grad)


def test_nan_is_not_hidden():
    assert jnp.isnan(quotient(jnp.ones((1, 2)), jnp.full((1, 1), jnp.nan))).all()
    assert jnp.isnan(quotient(jnp.full((1, 2), jnp.nan), jnp.ones((1, 1)))).all()


def test_sums_beyond_float16_stay_finite():
    q, k, v, scale = cast(draw(), jnp.float16)
    o, _ = run(60 * q, 60 * k, v, scale, None, scaled=False)
    assert o.dtype == jnp.float16
    assert_close(o, definition(*(np.asarray(x, np.float64) for x in (q, k, v, scale)), np.ones((B, T), int)), TOL.bf16)
