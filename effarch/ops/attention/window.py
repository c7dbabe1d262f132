"""Sliding-window attention with attention sinks: O(T * window) time, O(T) memory, forward and backward.

    the query at position p of its run sees positions j with p - window < j <= p, and the run's first `sinks` positions

StreamingLLM (2309.17453): a few first tokens stay visible, and rotary positions count inside the cache. A sink that has
left the window is read with `q_sink`, the query rotated at its place in a full cache, ``min(p, window + sinks - 1)``,
against the sink's key as it was rotated at its own small position; a sink inside the window is read as any other key.
"""

import dataclasses
from functools import partial
from operator import itemgetter

import jax
import jax.numpy as jnp

from effarch import axes
from effarch.ops.attention.blockwise import BLOCK, attention_and_logsumexp
from effarch.ops.attention.reference import (
    EMPTY,
    MASKED,
    Visibility,
    capped,
    check_heads,
    contiguous,
    dot,
    mix_and_logsumexp,
    row_segments,
    shield,
    zero_padding,
)
from effarch.ops.mixing import mixes
from effarch.ops.segments import Segments
from effarch.ops.tail import Tail, with_tails
from effarch.typing import Array, Float, Int

LEAST_BLOCK = 64  # below this a block's fixed costs exceed its work


@partial(
    jax.tree_util.register_dataclass,
    data_fields=["k", "v", "position", "sink_k", "sink_v", "length"],
    meta_fields=[],
)
@dataclasses.dataclass(frozen=True)
class LeftContext:
    """What a chunk must know of the part of run 1 that lies before it.

    Attributes:
      k: ``[B, L, Hk, D]`` the last keys, in any order.
      v: ``[B, L, Hk, V]`` their values.
      position: ``[B, L]`` int32 their positions in the run; negative where there is no key.
      sink_k: ``[B, sinks, Hk, D]`` the keys of the run's first positions.
      sink_v: ``[B, sinks, Hk, V]`` their values.
      length: ``[B]`` int32 tokens of the run so far; sinks at and beyond it are still to come.
    """

    k: Float[Array, "B L Hk D"]
    v: Float[Array, "B L Hk V"]
    position: Int[Array, "B L"]
    sink_k: Float[Array, "B sinks Hk D"]
    sink_v: Float[Array, "B sinks Hk V"]
    length: Int[Array, " B"]


@mixes(weights=True)
def window_attention(
    q: Float[Array, "B T Hq D"],
    k: Float[Array, "B T Hk D"],
    v: Float[Array, "B T Hk V"],
    *,
    window: int,
    sinks: int = 0,
    segment_ids: Int[Array, "B T"] | Segments | None = None,
    scale: float | None = None,
    cap: float | None = None,
    q_sink: Float[Array, "B T Hq D"] | None = None,
    left: LeftContext | None = None,
    form: str = "chunkwise",
    block_size: int | None = None,
) -> Float[Array, "B T Hq V"]:
    """Causal attention to the last ``window`` positions and to the first ``sinks`` of the run, each counted once.

    Args:
      q: queries; Hq is a multiple of Hk.
      k: keys, rotated at their own positions.
      v: values.
      window: number of positions seen, the query's own included, >= 1.
      sinks: number of first positions that stay visible, >= 0.
      segment_ids: documents of the row, 0 is padding (its output is 0); None is one document. Beside ``left``, run 1
        is the one that ``left`` belongs to, and `Segments` count its positions from ``left.length``.
      scale: multiplies the logits, default ``D ** -0.5``.
      cap: bounds the scaled logits to ``cap * tanh(logits / cap)``, > 0; None does not.
      q_sink: queries that read the sinks beyond the window, default ``q``.
      left: the carried part of run 1; None is nothing.
      form: "chunkwise", or "parallel" with its T x S scores in memory.
      block_size: largest number of queries in one block; default by ``window``.

    Raises:
      ValueError: shapes, ``window``, ``sinks`` or ``form`` are out of range.
    """
    options = {"segment_ids": segment_ids, "q_sink": q_sink, "left": left, "form": form, "block_size": block_size}
    return window_and_logsumexp(q, k, v, window=window, sinks=sinks, scale=scale, cap=cap, **options)[0]


def window_and_logsumexp(
    q: Float[Array, "B T Hq D"],
    k: Float[Array, "B T Hk D"],
    v: Float[Array, "B T Hk V"],
    *,
    window: int,
    sinks: int = 0,
    segment_ids: Int[Array, "B T"] | Segments | None = None,
    scale: float | None = None,
    cap: float | None = None,
    q_sink: Float[Array, "B T Hq D"] | None = None,
    left: LeftContext | None = None,
    form: str = "chunkwise",
    block_size: int | None = None,
) -> tuple[Float[Array, "B T Hq V"], Float[Array, "B T Hq"]]:
    """`window_attention`, and the log of its softmax's sum, for whoever adds other keys; `EMPTY` at padding."""
    _check(q, k, v, window, sinks, q_sink, left, form)
    scale = q.shape[3] ** -0.5 if scale is None else scale
    (batch, time), q_sink = q.shape[:2], q if q_sink is None else q_sink
    segments = row_segments(segment_ids, batch, time)
    if segment_ids is None and left is not None:
        segments = dataclasses.replace(segments, position=segments.position + left.length[:, None])
    attend = partial(_attend, window=window, sinks=sinks, scale=scale, cap=cap, form=form, block_size=block_size)
    split = axes.context_parallel(time) if form == "chunkwise" else None
    if split is None:
        return attend(q, k, v, q_sink, segments, left)

    def shard(tokens, inner: Segments | None, tail: Tail):
        q, k, v, q_sink, count = tokens
        inner = contiguous(*q.shape[:2]) if inner is None else inner
        inner = dataclasses.replace(inner, position=jnp.maximum(count - 1, 0))
        return attend(q, k, v, q_sink, inner, context_of(tail, k, v)), ()

    tokens, (mesh, axis) = (q, k, v, q_sink, segments.position + 1), split
    packed = None if segment_ids is None and sinks == 0 else segments
    near, first = itemgetter(1, 2, 4), itemgetter(1, 2) if sinks else None
    before = tail_before(left, k, v, window, sinks)
    return with_tails(shard, tokens, before, packed, last=near, first=first, mesh=mesh, axis=axis)[0]


def tail_before(left: LeftContext | None, k: Array, v: Array, window: int, sinks: int) -> Tail:
    """The left context as the tail before the first token: last keys, values, and how many tokens up to each."""
    one = jnp.ones((k.shape[0],), jnp.int32)
    if left is None:
        near, first = ([jnp.zeros((len(x), n, *x.shape[2:]), x.dtype) for x in (k, v)] for n in (window, sinks))
        return Tail((*near, jnp.zeros((len(k), window), jnp.int32)), tuple(first) if sinks else (), one - 1, one)
    newest = jnp.argsort(left.position, axis=1)[:, -window:]
    short = window - newest.shape[1]

    def last(x: Array) -> Array:
        x = jax.vmap(lambda row, i: row[i])(x, newest)
        x = jnp.where((at > 0).reshape(at.shape + (1,) * (x.ndim - 2)), x, 0)
        return jnp.pad(x, [(0, 0), (short, 0)] + [(0, 0)] * (x.ndim - 2))

    at = jnp.maximum(jnp.take_along_axis(left.position, newest, axis=1) + 1, 0)
    there = (jnp.arange(sinks, dtype=jnp.int32)[None] < left.length[:, None])[:, :, None, None]
    first = tuple(jnp.where(there, x, 0).astype(y.dtype) for x, y in ((left.sink_k, k), (left.sink_v, v)))
    near = (last(left.k).astype(k.dtype), last(left.v).astype(v.dtype), last(left.position + 1))
    return Tail(near, first if sinks else (), (at > 0).sum(axis=1, dtype=jnp.int32), one)


def context_of(tail: Tail, k: Array, v: Array) -> LeftContext:
    """The tail before a shard, whose keys and values are ``k`` and ``v``, as its left context; keys by age."""
    near_k, near_v, count = tail.last
    sink_k, sink_v = tail.first or (k[:, :0], v[:, :0])
    return LeftContext(near_k, near_v, count - 1, sink_k, sink_v, count[:, -1])


def _attend(q, k, v, q_sink, segments: Segments, left, *, window, sinks, scale, cap, form, block_size):
    """`window_and_logsumexp` on one device."""
    run, position, time = segments.run, segments.position, q.shape[1]
    q, q_sink = zero_padding(q, run), zero_padding(q_sink, run)

    run_k, position_k, keys, values = run, position, k, v
    if left is not None:
        run_k = jnp.concatenate([(left.position >= 0).astype(jnp.int32), run], axis=1)
        position_k = jnp.concatenate([left.position, position], axis=1)
        keys, values = (jnp.concatenate([a.astype(b.dtype), b], axis=1) for a, b in ((left.k, k), (left.v, v)))
    near = Visibility(run, position, run_k, position_k, causal=True, window=window)
    if form == "parallel":
        groups = [(q, *shield(keys, values, run_k), near.pairs())]
        if sinks:
            groups.append((q_sink, *_all_sinks(k, v, segments, left, window, sinks)))
        o, logsumexp = mix_and_logsumexp(groups, scale=scale, cap=cap)
        return _masked(o, logsumexp, run)

    block_size = max(LEAST_BLOCK, min(window, BLOCK)) if block_size is None else block_size
    o, logsumexp = attention_and_logsumexp(q, keys, values, near, scale=scale, cap=cap, block_size=block_size)
    if sinks == 0 or (left is None and time <= window):
        return o, logsumexp  # no position lies beyond the window
    return _masked(*_add_sinks(o, logsumexp, q_sink, k, v, segments, left, window, sinks, scale, cap), run)


def _masked(o: Array, logsumexp: Array, run: Array) -> tuple[Array, Array]:
    return zero_padding(o, run), jnp.where((run > 0)[:, :, None], logsumexp, EMPTY)


def _all_sinks(k: Array, v: Array, segments: Segments, left: LeftContext | None, window: int, sinks: int):
    """Keys and values that hold every run's sinks, and which queries see them beyond their window."""
    run, position = segments.run, segments.position
    k, v, run_k, position_k = _with_carried_sinks(k, v, segments, left, sinks)
    first = jnp.where(position_k < sinks, run_k, 0)
    beyond = Visibility(run, position - window, first, position_k)  # visible at p - window: no longer in the window
    return *shield(k, v, run_k), beyond.pairs()


def _with_carried_sinks(k: Array, v: Array, segments: Segments, left: LeftContext | None, sinks: int):
    """Keys, values, runs and positions of the carried sinks followed by the row."""
    run, position = segments.run, segments.position
    if left is None:
        return k, v, run, position
    slot = jnp.broadcast_to(jnp.arange(sinks, dtype=jnp.int32), (run.shape[0], sinks))
    there = (slot < left.length[:, None]).astype(jnp.int32)
    k, v = (jnp.concatenate([a.astype(b.dtype), b], axis=1) for a, b in ((left.sink_k, k), (left.sink_v, v)))
    return k, v, jnp.concatenate([there, run], axis=1), jnp.concatenate([slot, position], axis=1)


def _add_sinks(o, logsumexp, q_sink, k, v, segments, left, window, sinks, scale, cap) -> tuple[Array, Array]:
    """Adds the sinks beyond the window to the softmax over the window, and to the log of its sum.

    A block no longer than the window holds no query whose run began inside the block and has outgrown the window. So
    all queries of a block that read such sinks read those of one run, the one alive where the block begins.
    """
    (batch, time, heads, _), kv_heads = q_sink.shape, k.shape[2]
    size = min(window, BLOCK, time)
    blocks = -(-time // size)
    run, position = segments.run, segments.position
    starts = jnp.arange(blocks, dtype=jnp.int32) * size
    alive = segments.carried_run[:, starts]
    at = _sink_index(segments, starts, sinks, left)
    k, v, run_k, position_k = _with_carried_sinks(k, v, segments, left, sinks)
    k, v = shield(k, v, run_k)

    def gather(x: Array) -> Array:
        index = jnp.maximum(at, 0).reshape(batch, blocks * sinks, *(1,) * (x.ndim - 2))
        return jnp.take_along_axis(x, index, axis=1).reshape(batch, blocks, sinks, *x.shape[2:])

    def block(x: Array) -> Array:
        x = jnp.pad(x, ((0, 0), (0, blocks * size - time)) + ((0, 0),) * (x.ndim - 2))
        return x.reshape(batch, blocks, size, *x.shape[2:])

    slot = jnp.arange(sinks, dtype=jnp.int32)[None, None, :]
    found = (at >= 0) & (gather(run_k) == alive[:, :, None]) & (gather(position_k) == slot)
    run_s = jnp.where(found, alive[:, :, None], 0)
    flat = (batch * blocks, -1)
    blocked = Visibility(block(run), block(position) - window, run_s, gather(position_k))
    beyond = jax.tree.map(lambda x: x.reshape(flat), blocked)
    seen = beyond.pairs().reshape(batch, blocks, 1, 1, size, sinks)
    queries = block(q_sink).reshape(batch, blocks, size, kv_heads, heads // kv_heads, -1)
    logits = capped(dot("bnckgd,bnskd->bnkgcs", queries, gather(k)) * scale, cap)
    logits = jnp.where(seen, logits, MASKED)
    # The window is one more key of this softmax: its logit is the log-sum, its value the output so far.
    whole = block(logsumexp).reshape(batch, blocks, size, kv_heads, -1).transpose(0, 1, 3, 4, 2)[..., None]
    logits = jnp.concatenate([whole, logits], axis=-1)
    weights = jax.nn.softmax(logits, axis=-1)
    read = dot("bnkgcs,bnskv->bnckgv", weights[..., 1:].astype(v.dtype), gather(v))
    kept = weights[..., 0].transpose(0, 1, 4, 2, 3)[..., None]
    mixed = read + kept * block(o).reshape(read.shape).astype(kept.dtype)
    summed = jax.nn.logsumexp(logits, axis=-1).transpose(0, 1, 4, 2, 3).reshape(batch, -1, heads)[:, :time]
    return mixed.reshape(batch, blocks * size, heads, -1)[:, :time].astype(o.dtype), summed


def _sink_index(segments: Segments, starts: Array, sinks: int, left: LeftContext | None) -> Int[Array, "B N sinks"]:
    """Where in (carried sinks, row) the sinks of the run alive at each block's start are; negative where nowhere."""
    real = segments.real.astype(jnp.int32)
    before = (jnp.cumsum(real, axis=1, dtype=jnp.int32) - real)[:, starts]  # real tokens ahead of the block
    newest = jnp.take_along_axis(segments.order, jnp.maximum(before - 1, 0), axis=1)
    age = jnp.take_along_axis(segments.position, newest, axis=1)
    length = jnp.zeros_like(before[:, 0]) if left is None else left.length
    # The rank, among the row's real tokens, of the run's first token; negative if it was carried in.
    first = jnp.where(before > 0, before - 1 - age, -length[:, None])
    slot = jnp.arange(sinks, dtype=jnp.int32)[None, None, :]
    rank = first[:, :, None] + slot
    flat = jnp.clip(rank, 0, segments.order.shape[1] - 1).reshape(rank.shape[0], -1)
    carried = 0 if left is None else sinks
    here = carried + jnp.take_along_axis(segments.order, flat, axis=1).reshape(rank.shape)
    return jnp.where(rank >= 0, here, jnp.where(slot < carried, slot, -1))


def _check(q, k, v, window, sinks, q_sink, left, form) -> None:
    check_heads(q, k, v)
    if q.shape[1] != k.shape[1]:
        raise ValueError(f"k: expected S = T = {q.shape[1]}, got S = {k.shape[1]}")
    if window < 1:
        raise ValueError(f"window: expected >= 1, got {window}")
    if sinks < 0:
        raise ValueError(f"sinks: expected >= 0, got {sinks}")
    if q_sink is not None and q_sink.shape != q.shape:
        raise ValueError(f"q_sink: expected the shape of q, {list(q.shape)}, got {list(q_sink.shape)}")
    if left is not None and left.sink_k.shape[1] != sinks:
        raise ValueError(f"left.sink_k: expected {sinks} sinks, got {left.sink_k.shape[1]}")
    if form not in ("chunkwise", "parallel"):
        raise ValueError(f'form: expected "chunkwise" or "parallel", got {form!r}')
