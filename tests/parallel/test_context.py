"""A sequence split over eight devices gives what one device gives, and what is exchanged does not grow with it."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jax.sharding import AxisType

from effarch import axes
from effarch.ops.attention import RingCache, forgetting_attention, softmax_attention, window_attention
from effarch.ops.conv import causal_conv, delay, token_shift
from effarch.ops.segments import as_segments
from effarch.ops.stabiliser import NOTHING, stabilise
from tests.models import tiny
from tests.ops.recurrence_cases import random_segments
from tests.tolerances import TOL, assert_close

#: Padding anywhere, documents of a few tokens, and rows that are one document or all padding.
DOCUMENTS = np.stack(
    [
        *np.asarray(random_segments(np.random.default_rng(1), 2, 64)),
        np.full(64, 3),
        np.zeros(64),
        np.where(np.arange(64) < 40, 0, 5),
        np.repeat([1, 0, 1, 0, 0, 0, 2, 0], 8),
        np.where(np.arange(64) % 3 == 0, 1 + np.arange(64) // 30, 0),
        np.where(np.arange(64) < 7, 4, 0),
    ]
).astype(np.int32)


def rules(data=1, context=8):
    mesh = jax.make_mesh((data, context), ("data", "context"), axis_types=(AxisType.Auto,) * 2)
    return axes.Rules(mesh, (("batch", "data"), ("time", "context")))


def draw(seed, *shapes):
    rng = np.random.default_rng(seed)
    return tuple(rng.normal(size=shape).astype(np.float32) for shape in shapes)


def check(op, floats, *rest, table=None):
    """``op(*floats, *rest)``, a pytree, and its gradients for the floats: under the rules what they are without."""

    @partial(jax.jit, static_argnums=0)
    def run(table, floats, rest, cotangents):
        with axes.rules(table):
            values, pull = jax.vjp(lambda *floats: op(*floats, *rest), *floats)
            return values, pull(cotangents)

    shapes = jax.eval_shape(op, *floats, *rest)
    rng = np.random.default_rng(99)
    cotangents = jax.tree.map(lambda x: rng.normal(size=x.shape).astype(x.dtype), shapes)
    whole = run(None, floats, rest, cotangents)
    split = run(table or rules(), floats, rest, cotangents)
    for part, tolerance in ((0, TOL.f32_forward), (1, TOL.f32_grad)):
        for x, y in zip(jax.tree.leaves(split[part]), jax.tree.leaves(whole[part]), strict=True):
            assert_close(x, y, tolerance)


def test_runs_and_positions():
    last, length = np.array([3, 1, 3, 2, 5, 7, 1, 4], np.int32), np.arange(8, dtype=np.int32)

    @partial(jax.jit, static_argnums=0)
    def run(table, ids):
        with axes.rules(table):
            found = as_segments(ids, last_segment=last, length=length)
            return found.run, found.carried_run, found.position

    for ids in (DOCUMENTS, DOCUMENTS[:, :61]):
        for x, y in zip(run(rules(), ids), run(None, ids), strict=True):
            np.testing.assert_array_equal(x, y)


@pytest.mark.parametrize(("taps", "time"), [pytest.param(4, 64, marks=pytest.mark.slow), (21, 61)])
def test_convolutions(taps, time):
    """Also of more taps than a shard has tokens, and of more tokens than the devices divide."""
    x, weight, bias, state = draw(taps, (8, time, 6), (taps, 6), (6,), (8, taps - 1, 6))

    def run(x, weight, bias, state, ids):
        shifted, last = token_shift(x, state=state[:, -1], segment_ids=ids)
        later = delay(x, taps - 1, state=state, segment_ids=ids)
        return causal_conv(x, weight, bias, state=state, segment_ids=ids), shifted, last, later

    check(run, (x, weight, bias, state), DOCUMENTS[:, :time])
    check(run, (x, weight, bias, state), None)


@pytest.mark.parametrize(("window", "sinks", "time"), [pytest.param(5, 0, 64, marks=pytest.mark.slow), (19, 3, 61)])
def test_windows(window, sinks, time):
    """Also wider than two shards; with documents, sinks, and a window that was carried in."""
    heads = {"q": 4, "k": 2, "v": 2, "q_sink": 4}
    floats = draw(window, *((8, time, n, 4) for n in heads.values()), *((8, n, 2, 4) for n in (window, sinks) * 2))
    length = np.array([0, 1, 2, 4, 9, 18, 19, 40], np.int32)

    def run(q, k, v, q_sink, ring_k, sink_k, ring_v, sink_v, ids):
        ring = RingCache(ring_k, ring_v, sink_k, sink_v, length)
        options = {"window": window, "sinks": sinks, "q_sink": q_sink, "cap": 5.0}
        carried = as_segments(ids, length=length)
        went_on = window_attention(q, k, v, segment_ids=carried, left=ring.left, **options)
        return window_attention(q, k, v, segment_ids=ids, **options), went_on

    check(run, floats, DOCUMENTS[:, :time])
    check(run, floats, None)


@pytest.mark.parametrize(("causal", "time"), [(True, 61), (False, 64)])
def test_rings(causal, time):
    floats = draw(3, (8, time, 4, 4), (8, time, 2, 4), (8, time, 2, 6))
    run = partial(softmax_attention, causal=causal, cap=5.0)
    check(lambda q, k, v, ids: run(q, k, v, segment_ids=ids), floats, DOCUMENTS[:, :time])
    check(lambda q, k, v, ids: run(q, k, v, segment_ids=ids), floats, None)


def test_rings_that_forget():
    """The sums of the gates go on from shard to shard, in one document at 5 nats a token, too: 300 in all."""
    floats = draw(4, (8, 61, 4, 4), (8, 61, 2, 4), (8, 61, 2, 6), (8, 61, 4))

    def run(q, k, v, gate, ids):
        slow, fast = (forgetting_attention(q, k, v, by * jax.nn.softplus(gate), None, ids)[0] for by in (-0.1, -5.0))
        return slow, fast

    check(run, floats, DOCUMENTS[:, :61])
    check(run, floats, None)


@pytest.mark.parametrize("start", [0.0, NOTHING])
def test_running_maxima(start):
    log_decay, log_input, state = draw(5, (8, 61, 3), (8, 61, 3), (8, 3))

    def run(log_decay, log_input, state, ids):
        found = stabilise(-jax.nn.softplus(log_decay), 3 * log_input, state=state, start=start, segment_ids=ids)
        return found.log_decay, found.log_input, found.maximum, found.state

    check(run, (log_decay, log_input, state), DOCUMENTS[:, :61])
    check(run, (log_decay, log_input, state), None)


@pytest.mark.slow
def test_a_hybrid_model():
    """Attention around the ring, a recurrence after short convolutions, and a window, in scanned layers."""
    config = tiny.config("softmax_attention", "gated_deltanet", "sliding_window", layers=6)
    graph, params = tiny.split(config)
    trained, fixed = nnx.split_state(params, nnx.Param, ...)
    tokens = np.asarray(tiny.tokens(8, 61))

    @partial(jax.jit, static_argnums=0)
    def run(table, trained):
        def loss(trained):
            lm = nnx.merge(graph, nnx.merge_state(trained, fixed))
            hidden = lm.hidden(tokens, segment_ids=DOCUMENTS[:, :61]).hidden
            return (jnp.where(DOCUMENTS[:, :61, None] > 0, hidden, 0) ** 2).mean(), hidden

        with axes.rules(table):
            return jax.value_and_grad(loss, has_aux=True)(trained)

    (_, whole), gradients = run(None, trained)
    (_, split), split_gradients = run(rules(2, 4), trained)
    assert_close(split, whole, TOL.f32_forward)
    for x, y in zip(jax.tree.leaves(split_gradients), jax.tree.leaves(gradients), strict=True):
        assert_close(x, y, TOL.f32_grad)
