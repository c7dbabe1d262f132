"""Capped logits: every form of attention against a loop in float64, and gradients of one another."""

from functools import lru_cache, partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from effarch.ops.attention import KVCache, RingCache, attend, attention, blockwise_attention, window_attention
from tests.ops.attention_oracle import IDS, arrays, heads, loop
from tests.tolerances import TOL, assert_close

CAP, WINDOW, SINKS = 0.7, 7, 2


def case():
    q, k, v, g = heads(0, 3, 45, dtype=np.float64)
    return 3 * q, k, v, g, *arrays(50, q.shape, dtype=np.float64)


FORMS = {
    "reference": lambda q, k, v, q_sink, ids: attention(q, k, v, segment_ids=ids, cap=CAP),
    "blockwise": lambda q, k, v, q_sink, ids: blockwise_attention(q, k, v, segment_ids=ids, cap=CAP, block_size=14),
} | {
    f"window {form}": partial(
        lambda q, k, v, q_sink, ids, form: window_attention(
            q, k, v, window=WINDOW, sinks=SINKS, q_sink=q_sink, segment_ids=ids, cap=CAP, form=form, block_size=14
        ),
        form=form,
    )
    for form in ("parallel", "chunkwise")
}
WITHIN = {"window": WINDOW, "sinks": SINKS}


@lru_cache
def run(name):
    """Outputs and gradients of the case, in float64."""
    q, k, v, g, q_sink = case()
    with jax.enable_x64(True):

        def both(q, k, v, q_sink, g):
            o, pullback = jax.vjp(lambda *x: FORMS[name](*x, IDS), q, k, v, q_sink)
            return o, *pullback(g)

        return [np.asarray(x) for x in jax.jit(both)(q, k, v, q_sink, g)]


@pytest.mark.parametrize("name", FORMS)
def test_every_form_equals_a_loop(name):
    q, k, v, g, q_sink = case()
    found = run(name)
    options = {**WITHIN, "q_sink": q_sink} if "window" in name else {}
    assert_close(found[0], loop(q, k, v, IDS, cap=CAP, **options), TOL.f64)
    assert np.abs(found[0] - loop(q, k, v, IDS, **options)).max() > 0.1  # the cap does something
    numeric = np.zeros_like(q)
    step, at = 1e-6, [(0, 30, 1, 3), (1, 12, 2, 5), (0, 8, 3, 0)]
    for index in at:
        up, down = q.copy(), q.copy()
        up[index] += step
        down[index] -= step
        change = loop(up, k, v, IDS, cap=CAP, **options) - loop(down, k, v, IDS, cap=CAP, **options)
        numeric[index] = (change * g).sum() / (2 * step)
    for index in at:
        np.testing.assert_allclose(found[1][index], numeric[index], rtol=1e-6, atol=1e-8)


def test_gradients_of_blocks_are_those_of_the_reference():
    for one, other in (("blockwise", "reference"), ("window chunkwise", "window parallel")):
        for x, y in zip(run(one), run(other), strict=True):
            assert_close(x, y, TOL.f64, one)


@pytest.mark.parametrize("window", [None, WINDOW])
def test_with_a_cache(window):
    """A chunk, then single tokens."""
    q, k, v, _, q_sink = case()
    ids = np.ones_like(IDS)
    expected = loop(q, k, v, ids, cap=CAP, **({} if window is None else {**WITHIN, "q_sink": q_sink}))
    form = "chunkwise" if window is None else "recurrent"
    with jax.enable_x64(True):
        sizes = (2, 8, 6, jnp.float64)
        empty = KVCache.init(3, 45, *sizes) if window is None else RingCache.init(3, WINDOW, SINKS, *sizes)

        def piece(cache, form, *x):
            sink = {} if window is None else {"q_sink": x[3]}
            return attend(*x[:3], cache, form=form, cap=CAP, **sink)

        def one(cache, x):
            o, cache = piece(cache, "recurrent", *(y[:, None] for y in x))
            return cache, o[:, 0]

        @jax.jit
        def decoded(*inputs):
            first, cache = piece(empty, form, *(x[:, :20] for x in inputs))
            _, rest = jax.lax.scan(one, cache, [x[:, 20:].swapaxes(0, 1) for x in inputs])
            return jnp.concatenate([first, rest.swapaxes(0, 1)], axis=1)

        assert_close(np.asarray(decoded(q, k, v, q_sink)), expected, TOL.f64, form)
