from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from effarch.ops.attention import Visibility, attention, blockwise, blockwise_attention, softmax_attention
from effarch.ops.segments import as_segments
from tests.ops.attention_oracle import IDS, heads, loop
from tests.tolerances import TOL, assert_close

NAMES = ("o", "dq", "dk", "dv")


def with_gradients(fn):
    """(q, k, v, ids, g) -> (o, dq, dk, dv), compiled once per shape; the segments are traced."""

    def run(q, k, v, ids, g):
        o, pullback = jax.vjp(lambda q, k, v: fn(q, k, v, segment_ids=ids), q, k, v)
        return o, *pullback(g)

    return jax.jit(run)


BLOCKS = with_gradients(partial(blockwise_attention, block_size=14))  # 4 blocks of 12: 3 more than T = 45
BOTH = {"blockwise": BLOCKS, "reference": with_gradients(attention)}


def check(actual, expected) -> None:
    for name, x, y in zip(NAMES, actual, expected, strict=True):
        assert_close(x, y, TOL.f32_forward if name == "o" else TOL.f32_grad, name)


def exact(q, k, v, ids, g, *, causal=True):
    with jax.enable_x64(True):
        run = with_gradients(partial(attention, causal=causal))
        return [np.asarray(x) for x in run(*(x.astype(np.float64) for x in (q, k, v)), ids, g.astype(np.float64))]


def test_both_forms_equal_a_loop_in_float64():
    q, k, v, _ = heads(0, 3, 45, dtype=np.float64)
    with jax.enable_x64(True):
        for form, causal in (("parallel", True), ("parallel", False), ("chunkwise", True)):
            o = jax.jit(partial(softmax_attention, form=form, causal=causal, scale=0.3))(q, k, v, segment_ids=IDS)
            assert o.dtype == jnp.float64
            assert_close(o, loop(q, k, v, IDS, causal=causal, scale=0.3), TOL.f64, form)


@pytest.mark.parametrize("causal", [True, False])
def test_blockwise_equals_reference_in_value_and_gradient(causal):
    run = BLOCKS if causal else with_gradients(partial(blockwise_attention, causal=False, block_size=15))
    for seed, ids in enumerate((IDS, np.ones_like(IDS), np.sort(IDS)[:, ::-1])):
        case = heads(seed, 3, 45)
        check(run(*case[:3], ids, case[3]), exact(*case[:3], ids, case[3], causal=causal))


def test_one_token():
    q, k, v, g = heads(1, 3, 1)
    real = np.asarray([True, True, False])[:, None, None, None]
    o, dq, dk, dv = BLOCKS(q, k, v, np.asarray([[1], [2], [0]], np.int32), g)
    assert_close(o, np.where(real, np.repeat(v, 2, axis=2), 0), TOL.f32_forward)
    assert_close(dv, np.where(real, g.reshape(3, 1, 2, 2, 6).sum(axis=3), 0), TOL.f32_grad)
    assert np.abs(dq).max() < 1e-6 and np.abs(dk).max() < 1e-6


def test_large_logits_stay_finite():
    q, k, v, g = heads(1, 3, 45)
    check(BLOCKS(q * 300, k, v, IDS, g)[:1] + (0, 0, 0), exact(q * 300, k, v, IDS, g)[:1] + [0, 0, 0])
    assert all(np.isfinite(x).all() for x in BLOCKS(q * 1e4, k * 1e4, v, IDS, g))


@pytest.mark.parametrize("form", BOTH)
def test_documents_do_not_see_each_other(form):
    q, k, v, g = heads(2, 3, 45)
    whole = BOTH[form](q, k, v, IDS, g)
    alone = np.where(np.arange(45) < 12, 0, IDS)  # row 0: the documents from the third on
    alone[1:] = 0
    later = BOTH[form](q, k, v, alone, g)
    for x, y in zip(whole, later, strict=True):
        assert_close(y[0, 12:], x[0, 12:], TOL.f32_forward)
    grads = BOTH[form](q, k, v, IDS, np.where((np.arange(45) >= 12)[None, :, None, None], g, 0))[1:]
    assert all((np.asarray(x)[0, :12] == 0).all() for x in grads), "a gradient crosses documents"
    assert all((np.asarray(x)[0, 12:] != 0).any() for x in grads)


@pytest.mark.parametrize("form", BOTH)
def test_padding_is_the_identity_and_keeps_its_nan(form):
    q, k, v, g = heads(3, 3, 45)
    clean = BOTH[form](q, k, v, IDS, g)
    hole = (IDS == 0)[:, :, None, None]
    for bad in (np.nan, np.inf):
        broken = BOTH[form](*(np.where(hole, bad, a) for a in (q, k, v)), IDS, np.where(hole, bad, g))
        for x, y in zip(broken, clean, strict=True):
            np.testing.assert_array_equal(x, y)
            assert (np.asarray(x)[IDS == 0] == 0).all()
    # The tokens of row 1 side by side, and all padding on the right.
    order = np.argsort(IDS == 0, axis=1, kind="stable")
    packed = [np.take_along_axis(a, order[:, :, None, None], axis=1) for a in (q, k, v, g)]
    ids = np.take_along_axis(IDS, order, axis=1)
    for x, y in zip(BOTH[form](*packed[:3], ids, packed[3]), clean, strict=True):
        assert_close(np.asarray(x)[ids > 0], np.asarray(y)[IDS > 0], TOL.f32_forward)


@pytest.mark.parametrize("form", BOTH)
@pytest.mark.parametrize("which", [1, 2])
def test_a_broken_token_reaches_only_those_who_see_it(form, which):
    case = heads(4, 3, 45)
    clean = np.asarray(BOTH[form](*case[:3], IDS, case[3])[0])
    case[which][0, 20] = np.nan  # in the document of times 12 to 31
    o = np.asarray(BOTH[form](*case[:3], IDS, case[3])[0])
    sees = np.zeros_like(IDS, bool)
    sees[0, 20:32] = True
    assert np.isnan(o[sees]).all()
    np.testing.assert_array_equal(o[~sees], clean[~sees])


def test_keys_in_any_order_and_of_another_length():
    q, k, v, _ = heads(5, 2, 40)
    order = np.random.default_rng(0).permutation(40)
    at, run = np.broadcast_to(np.arange(40, dtype=np.int32), (2, 40)), np.ones((2, 40), np.int32)
    seen = Visibility(run[:, 30:], at[:, 30:], run, at[:, order])
    whole = loop(q, k, v, run)[:, 30:]
    for fn in (attention, partial(blockwise_attention, block_size=8)):
        o = jax.jit(fn)(q[:, 30:], k[:, order], v[:, order], visibility=seen)
        assert_close(o, whole, TOL.f32_forward)


def test_bfloat16_is_close_to_float32():
    q, k, v, g = (jnp.asarray(x, jnp.bfloat16) for x in heads(6, 3, 45))
    wide = BLOCKS(*(x.astype(jnp.float32) for x in (q, k, v)), IDS, g.astype(jnp.float32))
    for form, run in BOTH.items():
        for name, x, y in zip(NAMES, run(q, k, v, IDS, g), wide, strict=True):
            assert x.dtype == jnp.bfloat16
            assert_close(x.astype(jnp.float32), y, TOL.bf16, f"{form} {name}")


def test_inside_a_checkpointed_scan_over_layers():
    q, k, v, g = heads(7, 3, 45, v=8)

    def layers(fn, q, scanned):
        def layer(x):
            return x + fn(x, k, v, segment_ids=IDS)

        if scanned:
            return jax.lax.scan(jax.checkpoint(lambda x, _: (layer(x), None)), q, None, length=2)[0]
        return layer(layer(q))

    blocks = jax.jit(lambda q: jax.vjp(lambda q: layers(partial(blockwise_attention, block_size=14), q, True), q)[1](g))
    whole = jax.jit(lambda q: jax.vjp(lambda q: layers(attention, q, False), q)[1](g))
    assert_close(blocks(q)[0], whole(q)[0], TOL.f32_grad)


def test_blocks_that_nobody_sees_are_not_visited():
    @jax.jit
    def visits(visibility):
        queries, keys = blockwise._edges(visibility, 8, 8)
        return blockwise._span(blockwise._may_see(queries, keys, visibility))[1]

    segments = jax.jit(as_segments)

    def row(ids, **options):
        s = segments(np.asarray(ids, np.int32)[None])
        return visits(Visibility(s.run, s.position, s.run, s.position, **options))[0].tolist()

    one = [1] * 64
    assert row(one) == [1, 2, 3, 4, 5, 6, 7, 8]
    assert row(one, causal=False) == [8] * 8
    assert row(one, window=8) == [1] + [2] * 7
    assert row([1] * 16 + [2] * 24 + [0] * 8 + [3] * 16) == [1, 2, 1, 2, 3, 0, 1, 2]
    slots = np.arange(64, dtype=np.int32)[None]  # a cache of 64 slots, 20 of them filled
    assert visits(Visibility(np.ones((1, 8), np.int32), 12 + slots[:, :8], (slots < 20) + 0, slots)).tolist() == [[3]]


def test_compiled_memory_grows_with_the_row():
    def temporaries(time):
        q, kv = (jax.ShapeDtypeStruct((1, time, h, 64), jnp.float32) for h in (4, 2))
        run = with_gradients(blockwise_attention)
        lowered = run.lower(q, kv, kv, jax.ShapeDtypeStruct((1, time), jnp.int32), q)
        return lowered.compile().memory_analysis().temp_size_in_bytes

    short, long = temporaries(8192), temporaries(65536)
    assert np.log(long / short) / np.log(8) <= 1.05, (short, long)
    assert long <= 3 * 65536 * 64 * 4 * (4 + 2 + 2 + 4) * 2  # three times q, k, v, o and their gradients


def test_mistakes_are_named():
    q, k, v, _ = heads(8, 2, 4)
    for expected, call in (
        ("q: expected a multiple of Hk = 2 heads, got Hq = 3", lambda: attention(q[:, :, :3], k, v)),
        ("v: expected", lambda: attention(q, k, v[:, :3])),
        ("k: expected", lambda: attention(q, k[..., :3], v)),
        ("q: expected a floating-point array", lambda: attention(q[0], k, v)),
        ("k: expected S = T = 4", lambda: blockwise_attention(q, k[:, :3], v[:, :3])),
        ("segment_ids: expected [2, 4], got [2, 3]", lambda: attention(q, k, v, segment_ids=IDS[:2, :3])),
        ("block_size: expected >= 1, got 0", lambda: blockwise_attention(q, k, v, block_size=0)),
        ("form: expected one of chunkwise, parallel, got 'flash'", lambda: softmax_attention(q, k, v, form="flash")),
    ):
        with pytest.raises(ValueError) as error:
            call()
        assert str(error.value).startswith(expected), error.value
