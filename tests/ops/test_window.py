from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from effarch.ops.attention import window_attention
from tests.ops.attention_oracle import IDS, arrays, heads, loop
from tests.tolerances import TOL, assert_close

NAMES = ("o", "dq", "dk", "dv", "dq_sink")
SIZES = [(5, 3), (16, 2), (1, 1), (30, 0)]  # window, sinks


def case(seed, dtype=np.float32):
    q, k, v, g = heads(seed, 3, 45, dtype=dtype)
    return q, k, v, *arrays(seed + 100, q.shape, dtype=dtype), g


def with_gradients(**options):
    """(q, k, v, q_sink, ids, g) -> (o, dq, dk, dv, dq_sink), compiled once per shape; the segments are traced."""

    def run(q, k, v, q_sink, ids, g):
        def fn(q, k, v, q_sink):
            return window_attention(q, k, v, q_sink=q_sink, segment_ids=ids, **options)

        o, pullback = jax.vjp(fn, q, k, v, q_sink)
        return o, *pullback(g)

    return jax.jit(run)


BANDS = with_gradients(window=5, sinks=3, block_size=14)


@pytest.mark.parametrize(("window", "sinks"), SIZES)
def test_forms_equal_a_loop_in_float64(window, sinks):
    q, k, v, q_sink, _ = case(0, np.float64)
    expected = loop(q, k, v, IDS, window=window, sinks=sinks, q_sink=q_sink)
    with jax.enable_x64(True):
        for form in ("parallel", "chunkwise")[: 1 if sinks > 1 else 2]:  # those chunkwise: with their gradients, below
            fn = jax.jit(partial(window_attention, window=window, sinks=sinks, form=form, block_size=14))
            o = fn(q, k, v, q_sink=q_sink, segment_ids=IDS)
            assert o.dtype == jnp.float64
            assert_close(o, expected, TOL.f64, form)


@pytest.mark.parametrize(("window", "sinks"), SIZES[:2])
def test_chunkwise_equals_parallel_in_value_and_gradient(window, sinks):
    run = BANDS if window == 5 else with_gradients(window=window, sinks=sinks, block_size=15)
    with jax.enable_x64(True):
        exact = with_gradients(window=window, sinks=sinks, form="parallel")
        wide = [np.asarray(x) for x in exact(*case(1, np.float64)[:4], IDS, case(1, np.float64)[4])]
    q, k, v, q_sink, g = case(1)
    for name, x, y in zip(NAMES, run(q, k, v, q_sink, IDS, g), wide, strict=True):
        assert_close(x, y, TOL.f32_forward if name == "o" else TOL.f32_grad, name)


def test_one_document_per_row_needs_no_segments():
    q, k, v, q_sink, _ = case(2)
    fn = jax.jit(partial(window_attention, window=7, sinks=2, block_size=14))
    expected = loop(q, k, v, np.ones_like(IDS), window=7, sinks=2, q_sink=q_sink)
    assert_close(fn(q, k, v, q_sink=q_sink), expected, TOL.f32_forward)


def test_a_window_over_everything_is_attention():
    q, k, v, _, _ = case(3)
    fn = jax.jit(partial(window_attention, window=64, sinks=4))
    assert_close(fn(q, k, v, segment_ids=IDS), loop(q, k, v, IDS), TOL.f32_forward)


def test_rotary_positions_count_inside_the_cache():
    """What StreamingLLM does: a list of sinks and of the last keys, rotated anew by their places in it."""
    window, sinks, time, base = 6, 3, 30, 0.7
    q, k, v, _ = heads(4, 1, time, hq=1, hk=1, d=2, v=3, dtype=np.float64)

    def rotate(x, position):
        angle = base * np.asarray(position, np.float64)
        cos, sin = np.cos(angle), np.sin(angle)
        return np.stack([x[..., 0] * cos - x[..., 1] * sin, x[..., 0] * sin + x[..., 1] * cos], axis=-1)

    expected = np.zeros((time, 3))
    for t in range(time):
        held = [j for j in range(t + 1) if j < sinks or j > t - window]
        logits = rotate(k[0, held, 0], range(len(held))) @ rotate(q[0, t, 0], len(held) - 1) / np.sqrt(2)
        weights = np.exp(logits - logits.max())
        expected[t] = weights @ v[0, held, 0] / weights.sum()
    at = np.arange(time)[None, :, None]
    turned = rotate(q, at), rotate(k, at), v
    q_sink = rotate(q, np.minimum(at, window + sinks - 1))
    with jax.enable_x64(True):
        o = jax.jit(partial(window_attention, window=window, sinks=sinks, block_size=8))(*turned, q_sink=q_sink)
    assert_close(o[0, :, 0], expected, TOL.f64)


def test_documents_do_not_see_each_other():
    q, k, v, q_sink, g = case(5)
    later = (np.arange(45) >= 12)[None, :, None, None]
    grads = BANDS(q, k, v, q_sink, IDS, np.where(later, g, 0))[1:]
    assert all((np.asarray(x)[0, :12] == 0).all() for x in grads), "a gradient crosses documents"
    assert all((np.asarray(x)[0, 12:] != 0).any() for x in grads)


def test_padding_is_the_identity_and_keeps_its_nan():
    q, k, v, q_sink, g = case(6)
    clean = BANDS(q, k, v, q_sink, IDS, g)
    hole = (IDS == 0)[:, :, None, None]
    broken = BANDS(*(np.where(hole, np.nan, a) for a in (q, k, v, q_sink)), IDS, np.where(hole, np.nan, g))
    for x, y in zip(broken, clean, strict=True):
        np.testing.assert_array_equal(x, y)
        assert (np.asarray(x)[IDS == 0] == 0).all()
    order = np.argsort(IDS == 0, axis=1, kind="stable")  # all padding on the right
    packed = [np.take_along_axis(a, order[:, :, None, None], axis=1) for a in (q, k, v, q_sink, g)]
    ids = np.take_along_axis(IDS, order, axis=1)
    for x, y in zip(BANDS(*packed[:4], ids, packed[4]), clean, strict=True):
        assert_close(np.asarray(x)[ids > 0], np.asarray(y)[IDS > 0], TOL.f32_forward)


def test_a_broken_token_reaches_only_those_who_see_it():
    q, k, v, q_sink, g = case(7)
    clean = np.asarray(BANDS(q, k, v, q_sink, IDS, g)[0])
    v[0, 20] = np.nan  # the 9th of the document of times 12 to 31: no sink
    o = np.asarray(BANDS(q, k, v, q_sink, IDS, g)[0])
    sees = np.zeros_like(IDS, bool)
    sees[0, 20:25] = True
    assert np.isnan(o[sees]).all()
    np.testing.assert_array_equal(o[~sees], clean[~sees])


def test_bfloat16_is_close_to_float32():
    low = [jnp.asarray(x, jnp.bfloat16) for x in case(8)]
    wide = BANDS(*(x.astype(jnp.float32) for x in low[:4]), IDS, low[4].astype(jnp.float32))
    fn = jax.jit(partial(window_attention, window=5, sinks=3, block_size=14))
    o = fn(*low[:3], q_sink=low[3], segment_ids=IDS)
    assert o.dtype == jnp.bfloat16
    assert_close(o.astype(jnp.float32), wide[0], TOL.bf16)


def test_compiled_memory_grows_with_the_row():
    def temporaries(time):
        q, kv = (jax.ShapeDtypeStruct((1, time, h, 64), jnp.float32) for h in (4, 2))
        ids = jax.ShapeDtypeStruct((1, time), jnp.int32)
        lowered = with_gradients(window=64, sinks=4).lower(q, kv, kv, q, ids, q)
        return lowered.compile().memory_analysis().temp_size_in_bytes

    short, long = temporaries(8192), temporaries(65536)
    assert np.log(long / short) / np.log(8) <= 1.05, (short, long)
    assert long <= 3 * 65536 * 64 * 4 * (4 + 2 + 2 + 4) * 2  # three times q, k, v, o and their gradients


def test_mistakes_are_named():
    q, k, v, q_sink, _ = case(9)
    for expected, options in (
        ("window: expected >= 1, got 0", {"window": 0}),
        ("sinks: expected >= 0, got -1", {"window": 4, "sinks": -1}),
        ("q_sink: expected the shape of q", {"window": 4, "q_sink": q_sink[:, 1:]}),
        ('form: expected "chunkwise" or "parallel", got \'recurrent\'', {"window": 4, "form": "recurrent"}),
    ):
        with pytest.raises(ValueError) as error:
            window_attention(q, k, v, **options)
        assert str(error.value).startswith(expected), error.value
