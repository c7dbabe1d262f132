"""Windows dilated by head: against a loop over documents, against the mask, and after a ring of keys."""

import dataclasses
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from effarch.ops.attention import Dilated, RingCache, append, lay_out
from effarch.ops.segments import as_segments
from tests.ops.attention_oracle import IDS, heads, pattern
from tests.tolerances import TOL, assert_close

SCALE = 0.4
WINDOWS = {
    "causal": Dilated(4, (1, 3)),
    "both ways": Dilated(5, (2, 1), ahead=2),
    "the same for all heads": Dilated(3, (2,)),
    "ahead only": Dilated(2, (1, 2), ahead=1),
}


def sees(windows):
    """``(head, i, j)`` as in the class's docstring, for four query heads."""

    def rule(head, i, j):
        d = windows.dilations[head * len(windows.dilations) // 4]
        return j in [i + d * (windows.ahead - n) for n in range(windows.window)]

    return rule


@partial(jax.jit, static_argnums=0)
def attend(windows, q, k, v, ids, cache=None, last=None):
    segments = as_segments(ids, last_segment=last, length=None if cache is None else cache.length)
    line, cache = lay_out(k, v, segments, cache)
    return windows.attend(q, line, scale=SCALE)[0], line.dense(q, windows.seen(line), scale=SCALE), cache


@pytest.mark.parametrize("windows", WINDOWS.values(), ids=WINDOWS)
def test_heads_see_what_a_loop_over_documents_says(windows):
    q, k, v, _ = heads(0, 3, 45)
    expected = pattern(q, k, v, IDS, sees(windows), scale=SCALE)
    for o in attend(windows, q, k, v, IDS)[:2]:
        assert_close(o, expected, TOL.f32_forward)


def test_gradients_are_those_of_the_mask():
    windows, (*inputs, g) = WINDOWS["both ways"], heads(1, 3, 45, dtype=np.float64)
    with jax.enable_x64(True):
        found, wanted = (
            jax.jit(lambda x, n=n: jax.vjp(lambda x: attend(windows, *x, IDS)[n], x)[1](g)[0])(inputs) for n in (0, 1)
        )
    for what, x, y in zip("qkv", found, wanted, strict=True):
        assert_close(x, y, TOL.f64, what)


def test_a_chunk_goes_on_where_the_ring_ends():
    """A ring no longer than the farthest key seen, older keys lost; rows of different lengths, one starts anew."""
    windows = WINDOWS["causal"]
    q, k, v, _ = heads(2, 3, 45)
    ids = np.ones((3, 45), np.int32)
    ids[0, :9] = 0
    ids[1, :20] = 0
    ids[1, 22:26] = 0
    ids[2, 22:] = 7
    cache, outputs = RingCache.init(3, windows.longest, 0, 2, 8, 6, jnp.float32), []
    for cut in (slice(0, 15), slice(15, 30), slice(30, 45)):
        last = np.maximum(ids[:, cut.start - 1], 1) if cut.start else np.ones(3, np.int32)
        *both, cache = attend(windows, q[:, cut], k[:, cut], v[:, cut], ids[:, cut], cache, last)
        outputs.append(both)
    assert cache.length.tolist() == [36, 21, 23] and cache.k.shape[1] == 10
    whole = pattern(q, k, v, ids, sees(windows), scale=SCALE)
    for pieces in zip(*outputs, strict=True):
        assert_close(jnp.concatenate(pieces, axis=1), whole, TOL.f32_forward)


def test_stale_keys_of_a_ring_stay_out():
    """A ring that holds less than its size, NaN in what it does not hold."""
    windows = WINDOWS["causal"]
    q, k, v, _ = heads(3, 3, 15)
    ids = np.ones((3, 15), np.int32)
    cache = RingCache.init(3, windows.longest, 0, 2, 8, 6, jnp.float32)
    cache = append(cache, k[:, :4], v[:, :4])
    broken = dataclasses.replace(cache, k=cache.k.at[:, 4:].set(jnp.nan), v=cache.v.at[:, 4:].set(jnp.nan))
    o = attend(windows, q[:, 4:], k[:, 4:], v[:, 4:], ids[:, 4:], broken)[0]
    assert_close(o, pattern(q, k, v, ids, sees(windows), scale=SCALE)[:, 4:], TOL.f32_forward)


@pytest.mark.parametrize("windows", WINDOWS.values(), ids=WINDOWS)
def test_pairs_are_counted(windows):
    rule = sees(windows)
    for skip in (0, 3):
        seen = sum(rule(h, i, j) for h in range(4) for i in range(skip, 20) for j in range(skip, 20))
        assert windows.pairs(20, skip) == seen / 4


def test_mistakes_are_named():
    q, k, v, _ = heads(4, 2, 4)
    with pytest.raises(ValueError, match="dilations: expected a number that divides 2 key heads, got 3"):
        Dilated(2, (1, 2, 3)).attend(q, lay_out(k, v)[0], scale=1.0)
