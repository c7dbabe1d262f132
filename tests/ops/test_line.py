"""Patterns by position in the document: parts over a line of documents against loops over documents."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from effarch.ops.attention import Blocks, KVCache, choose_blocks, lay_out, merge, read_slots, strided_attention
from effarch.ops.attention.choice import blocks_of
from effarch.ops.segments import as_segments
from tests.ops.attention_oracle import IDS, documents, heads, pattern
from tests.tolerances import TOL, assert_close

SCALE = 0.4
# Each is one part of a pattern, and who sees whom by it.
PARTS = {
    "window": (lambda q, x: x.window(q, 5, scale=SCALE), lambda h, i, j: 0 <= i - j < 5),
    "window ahead": (lambda q, x: x.window(q, 5, ahead=2, scale=SCALE), lambda h, i, j: -2 <= i - j < 3),
    "own piece": (lambda q, x: x.own_piece(q, 4, scale=SCALE), lambda h, i, j: j <= i and i // 4 == j // 4),
    "strided": (
        lambda q, x: strided_attention(q, x, 3, behind=3, scale=SCALE),
        lambda h, i, j: j < i and (i - j) % 3 == 0,
    ),
    "dilated": (
        lambda q, x: strided_attention(q, x, 4, span=12, scale=SCALE),
        lambda h, i, j: i - j in (0, 4, 8),
    ),
    "dilated both ways": (
        lambda q, x: strided_attention(q, x, 2, behind=-4, span=9, scale=SCALE),
        lambda h, i, j: i - j in (-4, -2, 0, 2, 4),
    ),
}


def part(name):
    """(q, k, v, ids, cache) -> (o, cache)."""

    def run(q, k, v, ids, cache=None):
        last = None if cache is None else jnp.ones((3,), jnp.int32)
        segments = as_segments(ids, last_segment=last, length=None if cache is None else cache.length)
        line, cache = lay_out(k, v, segments, cache)
        return PARTS[name][0](q, line)[0], cache

    return jax.jit(run)


@pytest.mark.parametrize("name", PARTS)
def test_parts_see_what_a_loop_over_documents_says(name):
    q, k, v, _ = heads(0, 3, 45)
    for ids in (IDS, np.ones_like(IDS)):
        assert_close(part(name)(q, k, v, ids)[0], pattern(q, k, v, ids, PARTS[name][1], scale=SCALE), TOL.f32_forward)


@pytest.mark.parametrize("name", [name for name in PARTS if "ahead" not in name and "both" not in name])
def test_a_chunk_goes_on_where_the_cache_ends(name):
    """Carried keys of rows of different lengths, in a cache with room to spare; one row starts anew."""
    q, k, v, _ = heads(1, 3, 45)
    ids = np.ones((3, 45), np.int32)
    ids[0, :9] = 0
    ids[1, 20:26] = 0
    ids[1, 38:] = 4
    ids[2, 22:] = 7
    cache = KVCache.init(3, 50, 2, 8, 6, jnp.float32)
    run, outputs = part(name), []
    for cut in (slice(0, 22), slice(22, 45)):
        o, cache = run(q[:, cut], k[:, cut], v[:, cut], ids[:, cut], cache)
        outputs.append(o)
    assert cache.length.tolist() == [36, 7, 23]
    whole = pattern(q, k, v, ids, PARTS[name][1], scale=SCALE)
    assert_close(jnp.concatenate(outputs, axis=1), whole, TOL.f32_forward)


@pytest.mark.parametrize("name", ["strided", "own piece"])
def test_gradients_are_those_of_the_mask(name):
    *inputs, g = heads(2, 3, 45, dtype=np.float64)

    def masked(q, k, v):
        line, _ = lay_out(k, v, as_segments(IDS))
        at = np.arange(45)
        table = np.array([[PARTS[name][1](0, i, j) for j in at] for i in at])
        return line.dense(q, line.seen(lambda i, j: jnp.asarray(table)[i, j]), scale=SCALE)

    with jax.enable_x64(True):
        found = jax.jit(lambda x, g: jax.vjp(lambda x: part(name)(*x, IDS)[0], x)[1](g)[0])(inputs, g)
        wanted = jax.jit(lambda x, g: jax.vjp(lambda x: masked(*x), x)[1](g)[0])(inputs, g)
    for what, x, y in zip("qkv", found, wanted, strict=True):
        assert_close(x, y, TOL.f64, what)


@pytest.mark.parametrize("name", PARTS)
def test_padding_and_other_documents_keep_their_nan(name):
    q, k, v, _ = heads(3, 3, 45)
    clean = np.asarray(part(name)(q, k, v, IDS)[0])
    hidden = IDS == 0
    hidden[0, 12:32] = True  # one document of row 0
    broken = (np.where(hidden[:, :, None, None], np.nan, x) for x in (q, k, v))
    o = np.asarray(part(name)(*broken, IDS)[0])
    np.testing.assert_array_equal(o[~hidden], clean[~hidden])
    assert (o[IDS == 0] == 0).all()


def test_parts_without_a_common_key_are_one_softmax():
    q, k, v, _ = heads(4, 3, 45)

    @jax.jit
    def run(q, k, v):
        line, _ = lay_out(k, v, as_segments(IDS))
        return merge([line.window(q, 3, scale=SCALE), strided_attention(q, line, 3, behind=3, scale=SCALE)])

    expected = pattern(q, k, v, IDS, lambda h, i, j: 0 <= i - j and (i - j < 3 or (i - j) % 3 == 0), scale=SCALE)
    assert_close(run(q, k, v), expected, TOL.f32_forward)


def test_blocks_are_the_whole_blocks_of_every_document():
    _, k, v, _ = heads(5, 3, 45)

    @jax.jit
    def cut(k, v):
        found = Blocks.of(lay_out(k, v, as_segments(IDS))[0], 4)
        return {name: getattr(found, name) for name in ("k", "v", "run", "number", "first")}

    blocks = cut(k, v)
    for b in range(3):
        runs = documents(IDS[b])  # run 1 would be a carried document
        wanted = [(r + 2, m, run[4 * m : 4 * m + 4]) for r, run in enumerate(runs) for m in range(len(run) // 4)]
        there = np.asarray(blocks["run"][b]) > 0
        assert there.tolist() == [True] * len(wanted) + [False] * (11 - len(wanted))
        for n, (run, number, tokens) in enumerate(wanted):
            assert (blocks["run"][b, n], blocks["number"][b, n]) == (run, number)
            np.testing.assert_array_equal(blocks["k"][b, n], k[b, tokens])
            np.testing.assert_array_equal(blocks["v"][b, n], v[b, tokens])
        for r, run in enumerate(runs):
            first = sum(len(other) // 4 for other in runs[:r])
            assert (np.asarray(blocks["first"])[b, run] == first).all()


def test_the_best_past_blocks_are_chosen():
    """By the query's product with a mean, among the whole blocks of its document that end before its own begins."""
    q, k, v, _ = heads(6, 3, 45, hq=4, hk=2)

    @partial(jax.jit, static_argnums=3)
    def choose(q, k, v, count):
        line, _ = lay_out(k, v, as_segments(IDS))
        blocks = Blocks.of(line, 4)

        def score(logits, distance, number):
            return logits.reshape(logits.shape[0], -1, *logits.shape[3:])

        means = blocks.k.mean(axis=2)
        return means, choose_blocks(
            q,
            means,
            run_q=line.run_q,
            position_q=line.position_q,
            run=blocks.run,
            number=blocks.number,
            size=4,
            count=count,
            score=score,
        )

    for count in (2, 20):  # more than there are, too
        means, index = (np.asarray(x) for x in choose(q, k, v, count))
        assert index.shape == (3, 45, 4, count)
        for b in range(3):
            before = 0
            for run in documents(IDS[b]):
                for n, i in enumerate(run):
                    for h in range(4):
                        past = range(before, before + n // 4)
                        best = sorted(past, key=lambda m: -float(q[b, i, h] @ means[b, m, h // 2]))[:count]
                        assert sorted(index[b, i, h][index[b, i, h] >= 0]) == sorted(best)
                before += len(run) // 4
            assert (index[b][IDS[b] == 0] == -1).all()


def test_reading_slots_reads_only_those():
    q, k, v, _ = heads(7, 2, 24)
    q, k = q[:, :1], k.copy()
    cache = KVCache(jnp.asarray(k), jnp.asarray(v), jnp.asarray([24, 9], jnp.int32))
    for count in (1, 2, 4):  # one list for all heads, for each group, for each head
        rng = np.random.default_rng(count)
        slot = np.argsort(rng.random((2, count, 24)), axis=2)[:, :, :7].astype(np.int32)
        seen = rng.random(slot.shape) < 0.7
        seen[1, 0] = count == 1
        bad = jax.tree.map(jnp.copy, cache)
        for b in range(2):
            hidden = sorted(set(range(24)) - set(slot[b][seen[b]].tolist()))
            bad = KVCache(bad.k.at[b, hidden].set(jnp.nan), bad.v.at[b, hidden].set(jnp.nan), bad.length)
        o = jax.jit(partial(read_slots, scale=SCALE))(q, bad, slot, seen)
        for b in range(2):
            for h in range(4):
                near = slot[b, h * count // 4][seen[b, h * count // 4]]
                weights = np.exp(SCALE * k[b, near, h // 2] @ q[b, 0, h])
                expected = weights @ v[b, near, h // 2] / max(weights.sum(), 1e-9)
                assert_close(o[b, 0, h], expected, TOL.f32_forward)


def test_blocks_as_slots():
    slot, there = blocks_of(jnp.asarray([[[3, -1]]], jnp.int32), 4)
    assert slot[there].tolist() == [12, 13, 14, 15] and there.shape == (1, 1, 8)


def test_mistakes_are_named():
    q, k, v, _ = heads(8, 2, 4)
    line, _ = lay_out(k, v)
    with pytest.raises(ValueError, match="stride: expected >= 1, got 0"):
        strided_attention(q, line, 0, scale=1.0)
