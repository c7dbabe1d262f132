import jax
import jax.numpy as jnp
import numpy as np
import pytest

from effarch.ops.attention import KVCache, RingCache, append, attend
from effarch.ops.segments import as_segments
from tests.ops.attention_oracle import arrays, heads, loop
from tests.tolerances import TOL, assert_close

# Rows of different lengths: documents that change inside and between chunks, padding left, right and inside,
# an all-padding chunk (row 1, the second), a one-token document.
IDS = np.array(
    [
        [1] * 5 + [2] * 9 + [3] * 10,
        [0] * 4 + [7] * 4 + [0] * 8 + [7] * 5 + [0] * 3,
        [5] * 20 + [0] * 4,
        [0] * 1 + [1] * 9 + [0] * 2 + [1] * 3 + [4] * 1 + [1] * 8,
    ],
    np.int32,
)
WINDOW, SINKS = 5, 2
KINDS = {
    "kv": (lambda dtype: KVCache.init(4, 24, 2, 8, 6, dtype), {}),
    "ring": (lambda dtype: RingCache.init(4, WINDOW, SINKS, 2, 8, 6, dtype), {"window": WINDOW, "sinks": SINKS}),
}


def case(seed, dtype=np.float32):
    q, k, v, g = heads(seed, 4, 24, dtype=dtype)
    return q, k, v, *arrays(seed + 100, q.shape, dtype=dtype), g


def step(kind, form):
    """One chunk: (q, k, v, q_sink, ids, carry) -> (o, carry); the carry is the cache and the last id of each row."""

    def run(q, k, v, q_sink, ids, carry):
        cache, last = carry
        segments = as_segments(ids, last_segment=last, length=cache.length)
        sink = {} if kind == "kv" else {"q_sink": q_sink}
        o, cache = attend(q, k, v, cache, segments, form=form, **sink)
        clock = jnp.arange(ids.shape[1], dtype=jnp.int32)[None, :]
        newest = jnp.where(ids > 0, clock, -1).max(axis=1)
        latest = jnp.take_along_axis(ids, jnp.maximum(newest, 0)[:, None], axis=1)[:, 0]
        return o, (cache, jnp.where(newest >= 0, latest, last))

    return run


def chunks(kind, form, size, arrays, dtype=jnp.float32):
    """The outputs of a row fed in chunks, side by side, and the last cache."""
    fn, carry, outputs = jax.jit(step(kind, form)), (KINDS[kind][0](dtype), jnp.ones((4,), jnp.int32)), []
    for start in range(0, 24, size):
        o, carry = fn(*(x[:, start : start + size] for x in (*arrays, IDS)), carry)
        outputs.append(o)
    return jnp.concatenate(outputs, axis=1), carry[0]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("form", ["chunkwise", "recurrent"])
def test_chunks_equal_the_whole_row(kind, form):
    *inputs, _ = case(0)
    o, cache = chunks(kind, form, 8, inputs)
    options = KINDS[kind][1]
    expected = loop(*inputs[:3], IDS, **options, **({"q_sink": inputs[3]} if options else {}))
    assert_close(o, expected, TOL.f32_forward)
    assert cache.length.tolist() == [10, 9, 20, 8]


@pytest.mark.parametrize("kind", KINDS)
def test_token_by_token_equals_the_whole_row(kind):
    *inputs, _ = case(1)

    @jax.jit
    def decode(inputs, ids):
        fn = step(kind, "recurrent")

        def body(carry, xs):
            o, carry = fn(*(x[:, None] for x in xs), carry)
            return carry, o[:, 0]

        xs = tuple(jnp.moveaxis(x, 1, 0) for x in (*inputs, ids))
        carry, o = jax.lax.scan(body, (KINDS[kind][0](jnp.float32), jnp.ones((4,), jnp.int32)), xs)
        return jnp.moveaxis(o, 0, 1), carry[0]

    o, cache = decode(inputs, IDS)
    options = KINDS[kind][1]
    expected = loop(*inputs[:3], IDS, **options, **({"q_sink": inputs[3]} if options else {}))
    assert_close(o, expected, TOL.f32_forward)
    # The two ways to fill a cache leave the same tokens behind.
    whole = jax.jit(lambda x: append(KINDS[kind][0](jnp.float32), *x[1:3], as_segments(IDS)))(inputs)
    np.testing.assert_array_equal(cache.length, whole.length)
    held = np.arange(24)[None] < whole.length[:, None] if kind == "kv" else np.ones((4, WINDOW), bool)
    for name in ("k", "v"):
        np.testing.assert_array_equal(getattr(cache, name)[held], getattr(whole, name)[held])


@pytest.mark.parametrize("kind", KINDS)
def test_gradients_flow_through_the_cache(kind):
    *inputs, g = case(2, np.float64)
    with jax.enable_x64(True):

        def grads(form, size):
            run = jax.jit(lambda x, g: jax.vjp(lambda x: chunks(kind, form, size, x, jnp.float64)[0], x)[1](g)[0])
            return run(inputs, g)

        split, whole = grads("chunkwise", 12), grads("parallel", 24)
    for name, x, y in zip(("q", "k", "v", "q_sink"), split, whole, strict=True):
        assert_close(x, y, TOL.f64, name)


@pytest.mark.parametrize("kind", KINDS)
def test_without_segments_every_token_goes_on(kind):
    *inputs, _ = case(3)
    options = KINDS[kind][1]

    @jax.jit
    def run(q, k, v, q_sink):
        cache, outputs = KINDS[kind][0](jnp.float32), []
        for start, stop in ((0, 11), (11, 12), (12, 24)):
            sink = {"q_sink": q_sink[:, start:stop]} if options else {}
            o, cache = attend(q[:, start:stop], k[:, start:stop], v[:, start:stop], cache, **sink)
            outputs.append(o)
        return jnp.concatenate(outputs, axis=1)

    expected = loop(*inputs[:3], np.ones((4, 24)), **options, **({"q_sink": inputs[3]} if options else {}))
    assert_close(run(*inputs), expected, TOL.f32_forward)


def test_no_nan_of_an_earlier_document_or_of_padding_is_read():
    for make in (KINDS["kv"][0], KINDS["ring"][0], lambda dtype: RingCache.init(4, WINDOW, 0, 2, 8, 6, dtype)):
        q, k, v, _, _ = case(4)
        q, k, v = (x[:, :1] for x in (q, k, v))
        empty = make(jnp.float32)
        bad = jax.tree.map(lambda x: jnp.full_like(x, jnp.nan if x.dtype == jnp.float32 else 3), empty)
        run = jax.jit(lambda q, k, v, cache, ids: attend(q, k, v, cache, as_segments(ids, length=cache.length)))
        o, cache = run(q, k, v, bad, np.full((4, 1), 2, np.int32))  # not the cache's document: starts anew
        np.testing.assert_allclose(o, np.repeat(v, 2, axis=2), rtol=1e-6)
        assert cache.length.tolist() == [1, 1, 1, 1]
        o, after = run(*(x * np.nan for x in (q, k, v)), cache, np.zeros((4, 1), np.int32))  # padding
        np.testing.assert_array_equal(o, np.zeros_like(o))
        jax.tree.map(np.testing.assert_array_equal, after, cache)


def test_tokens_beyond_the_cache_are_dropped():
    _, k, v, _, _ = case(5)
    cache = jax.jit(append)(KVCache.init(4, 10, 2, 8, 6, jnp.float32), k, v)
    np.testing.assert_array_equal(cache.k, k[:, :10])
    assert cache.length.tolist() == [24] * 4


@pytest.mark.parametrize("kind", KINDS)
def test_one_token_is_written_in_place(kind):
    cache = jax.eval_shape(lambda: KVCache.init(4, 4096, 2, 8, 6, jnp.float32))
    if kind == "ring":
        cache = jax.eval_shape(lambda: RingCache.init(4, 4096, 2, 2, 8, 6, jnp.float32))
    k, v = (jax.ShapeDtypeStruct((4, 1, 2, d), jnp.float32) for d in (8, 6))
    memory = jax.jit(append, donate_argnums=0).lower(cache, k, v).compile().memory_analysis()
    assert memory.temp_size_in_bytes < cache.v.size  # a quarter of v's bytes
    assert memory.alias_size_in_bytes >= 4 * (cache.k.size + cache.v.size)


def test_a_cache_is_a_pytree_with_a_static_version():
    cache = KVCache.init(1, 2, 1, 1, 1, jnp.bfloat16)
    assert len(jax.tree.leaves(cache)) == 3 and cache.version == 1 and cache.k.dtype == jnp.bfloat16
    assert len(jax.tree.leaves(RingCache.init(1, 2, 1, 1, 1, 1, jnp.float32))) == 5


def test_mistakes_are_named():
    q, k, v, q_sink, _ = case(6)
    cache = KINDS["kv"][0](jnp.float32)
    for expected, call in (
        ("k: expected [B, T, H, D] to fit a cache [4, 24, 2, 8]", lambda: append(cache, k[..., :3], v)),
        ("v: expected [B, T, H, D] to fit a cache [4, 24, 2, 6]", lambda: append(cache, k, v[:, :, :1])),
        ("q_sink: expected None with a KVCache", lambda: attend(q, k, v, cache, q_sink=q_sink)),
        ("form: expected one of parallel, chunkwise, recurrent", lambda: attend(q, k, v, cache, form="flash")),
        ("segment_ids: expected [4, 24], got [4, 3]", lambda: attend(q, k, v, cache, IDS[:, :3])),
    ):
        with pytest.raises(ValueError) as error:
            call()
        assert str(error.value).startswith(expected), error.value
