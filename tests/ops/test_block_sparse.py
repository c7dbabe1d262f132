from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from effarch.ops.attention import merge, selected_attention
from effarch.ops.attention.reference import EMPTY, mix
from tests.ops.attention_oracle import arrays
from tests.tolerances import TOL, assert_close

NAMES = ("o", "logsumexp", "dq", "dk", "dv")
# batch, time, query heads, key heads, lists, blocks, block size, entries
SHAPES = {"a list per group": (2, 45, 4, 2, 2, 5, 8, 3), "a list per head": (2, 67, 4, 2, 4, 9, 20, 4)}


def lists(rng, batch, time, heads, blocks, entries):
    """Random lists: each block once, some shorter than others, some empty."""
    index = np.argsort(rng.random((batch, time, heads, blocks)), axis=-1)[..., :entries]
    index = np.where(rng.random(index.shape) < 0.3, -1, index)
    index[:, ::7] = -1
    return index.astype(np.int32)


def case(shape, seed=0, dtype=np.float32):
    """q, k, v, the lists, and the gradients of both outputs."""
    batch, time, hq, hk, hs, blocks, size, entries = shape
    q, k, v, do, dl = arrays(
        seed,
        (batch, time, hq, 8),
        (batch, blocks, size, hk, 8),
        (batch, blocks, size, hk, 6),
        (batch, time, hq, 6),
        (batch, time, hq),
        dtype=dtype,
    )
    return q, k, v, lists(np.random.default_rng(seed), batch, time, hs, blocks, entries), do, dl


def dense(q, k, v, index, *, scale):
    """The reference with the lists as a mask in memory; its log-sum by hand."""
    batch, blocks, size, hk, width = k.shape
    chosen = (index[..., None] == jnp.arange(blocks, dtype=jnp.int32)[None, None, None, None]).any(
        axis=3
    )  # [B, T, Hs, N]
    seen = jnp.repeat(chosen, size, axis=3).swapaxes(1, 2)  # [B, Hs, T, S]
    seen = seen.reshape(batch, hk, -1, *seen.shape[2:])
    k, v = (x.reshape(batch, blocks * size, hk, -1) for x in (k, v))
    o = mix([(q, k, v, seen)], scale=scale)
    logits = jnp.einsum("btkgd,bskd->bkgts", q.reshape(*q.shape[:2], hk, -1, width), k) * scale
    logits = jnp.where(seen, logits, -1e30)
    peak = jnp.maximum(logits.max(axis=-1), EMPTY)
    total = jnp.exp(logits - peak[..., None]).sum(axis=-1)
    logsumexp = peak + jnp.log(jnp.where(total > 0, total, 1))
    return o, jnp.moveaxis(logsumexp, 3, 1).reshape(q.shape[:3])


def with_gradients(fn):
    """(q, k, v, index, do, dl) -> (o, logsumexp, dq, dk, dv); log-sums of nothing are 0 here."""

    def run(q, k, v, index, do, dl):
        (o, logsumexp), pullback = jax.vjp(lambda q, k, v: fn(q, k, v, index, scale=0.4), q, k, v)
        return o, jnp.where(logsumexp > EMPTY, logsumexp, 0), *pullback((do, dl))

    return jax.jit(run)


TILES = with_gradients(selected_attention)


def exact(given):
    with jax.enable_x64(True):
        wide = [x if x.dtype == np.int32 else x.astype(np.float64) for x in given]
        return [np.asarray(x) for x in with_gradients(dense)(*wide)]


@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
def test_tiles_equal_the_mask_in_value_and_gradient(shape):
    given = case(shape)
    for name, x, y in zip(NAMES, TILES(*given), exact(given), strict=True):
        assert_close(x, y, TOL.f32_forward if name in NAMES[:2] else TOL.f32_grad, name)


def test_float64_stays_float64():
    given = case(SHAPES["a list per group"], 1, np.float64)
    with jax.enable_x64(True):
        for name, x, y in zip(NAMES, TILES(*given), exact(given), strict=True):
            assert x.dtype == jnp.float64
            assert_close(x, y, TOL.f64, name)


def test_one_token_and_more_entries_than_tokens():
    given = case((2, 1, 4, 2, 2, 5, 8, 3), 2)
    given[3][:, 0] = [[[4, 0, -1], [2, 3, 1]], [[-1, 4, -1], [-1, -1, -1]]]
    for name, x, y in zip(NAMES, TILES(*given), exact(given), strict=True):
        assert_close(x, y, TOL.f32_forward if name in NAMES[:2] else TOL.f32_grad, name)


def test_all_queries_want_the_same_block_or_none():
    shape = SHAPES["a list per group"]
    q, k, v, index, do, dl = case(shape, 3)
    for same in (np.full_like(index, -1), np.where(np.arange(index.shape[3]) == 1, np.int32(4), -1 + 0 * index)):
        found, wanted = TILES(q, k, v, same, do, dl), exact((q, k, v, same, do, dl))
        for name, x, y in zip(NAMES, found, wanted, strict=True):
            assert_close(x, y, TOL.f32_forward if name in NAMES[:2] else TOL.f32_grad, name)


def test_nothing_seen_is_zero_with_finite_gradients():
    q, k, v, index, do, dl = case(SHAPES["a list per head"], 4)
    o, logsumexp = jax.jit(partial(selected_attention, scale=0.4))(q, k, v, index)
    nothing = (index < 0).all(axis=3)
    assert nothing.any() and (np.asarray(o)[nothing] == 0).all() and (np.asarray(logsumexp)[nothing] == EMPTY).all()
    dq = np.asarray(TILES(q, k, v, index, do, dl)[2])
    assert np.isfinite(dq).all() and (dq[nothing] == 0).all()


@pytest.mark.parametrize("which", [1, 2])
def test_a_broken_block_reaches_only_those_who_chose_it(which):
    given = case(SHAPES["a list per group"], 5)
    clean = TILES(*given)
    given[which][0, 3, 2, 1] = np.nan  # block 3 of row 0, for the second key head
    o, _, dq, dk, dv = (np.asarray(x) for x in TILES(*given))
    chose = np.zeros(o.shape[:3], bool)
    chose[0, :, 2:] = (given[3][0, :, 1] == 3).any(axis=1)[:, None]
    assert np.isnan(o[chose]).all() and chose.any()
    np.testing.assert_array_equal(o[~chose], np.asarray(clean[0])[~chose])
    np.testing.assert_array_equal(dq[~chose], np.asarray(clean[2])[~chose])
    assert np.isfinite(dk[1]).all() and np.isfinite(dv[1]).all() and np.isfinite(dk[0, :, :, 0]).all()


def test_large_logits_stay_finite():
    q, *rest = case(SHAPES["a list per group"], 6)
    for name, x, y in zip(NAMES[:2], TILES(q * 300, *rest), exact((q * 300, *rest)), strict=False):
        assert_close(x, y, TOL.f32_forward, name)
    assert all(np.isfinite(x).all() for x in TILES(q * 1e4, rest[0] * 1e4, *rest[1:]))


def test_bfloat16_is_close_to_float32():
    given = case(SHAPES["a list per group"], 7)
    low = [jnp.asarray(x, jnp.bfloat16) if x.dtype == np.float32 else x for x in given]
    low[5] = jnp.asarray(given[5])  # log-sums are float32
    wide = TILES(*(jnp.asarray(x, jnp.float32) if x.dtype == jnp.bfloat16 else x for x in low))
    for name, x, y in zip(NAMES, TILES(*low), wide, strict=True):
        assert x.dtype == (jnp.float32 if name == "logsumexp" else jnp.bfloat16)
        assert_close(x.astype(jnp.float32), y, TOL.bf16, name)


def test_a_softmax_in_parts_is_the_whole():
    """The entries of the lists one by one, merged, in value and in gradient."""
    q, k, v, index, do, _ = case(SHAPES["a list per group"], 8)

    def parts(q, k, v):
        return merge([selected_attention(q, k, v, index[..., n : n + 1], scale=0.4) for n in range(3)])

    def whole(q, k, v):
        return dense(q, k, v, index, scale=0.4)[0]

    found, wanted = (jax.jit(lambda *x, fn=fn: (fn(*x), *jax.vjp(fn, *x)[1](do)))(q, k, v) for fn in (parts, whole))
    for x, y in zip(found, wanted, strict=True):
        assert_close(x, y, TOL.f32_grad)


def temporaries(time, entries, blocks=64):
    q = jax.ShapeDtypeStruct((1, time, 4, 64), jnp.float32)
    kv = jax.ShapeDtypeStruct((1, blocks, 64, 2, 64), jnp.float32)
    index = jax.ShapeDtypeStruct((1, time, 2, entries), jnp.int32)
    lowered = TILES.lower(q, kv, kv, index, q, jax.ShapeDtypeStruct(q.shape[:3], jnp.float32))
    return lowered.compile().memory_analysis().temp_size_in_bytes


def test_compiled_memory_grows_with_queries_and_not_with_pairs():
    few, many, long = temporaries(8192, 2), temporaries(8192, 16), temporaries(65536, 2)
    assert np.log(long / few) / np.log(8) <= 1.05, (few, long)
    assert many <= 1.25 * few, (few, many)  # the lists themselves
    assert long <= 8 * 65536 * 4 * 64 * 4  # eight times q


def test_mistakes_are_named():
    q, k, v, index, _, _ = case(SHAPES["a list per group"])
    for expected, call in (
        ("k, v: expected [2, N, C, Hk, 8]", lambda: selected_attention(q, k[..., :3], v, index, scale=1.0)),
        ("k, v: expected [2, N, C, Hk, 8]", lambda: selected_attention(q, k, v[:, 1:], index, scale=1.0)),
        ("index: expected [2, 45, Hs, M]", lambda: selected_attention(q, k, v, index[:, 1:], scale=1.0)),
        ("index: expected [2, 45, Hs, M]", lambda: selected_attention(q, k, v, index[:, :, :1], scale=1.0)),
    ):
        with pytest.raises(ValueError) as error:
            call()
        assert str(error.value).startswith(expected), error.value
