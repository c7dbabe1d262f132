"""What softmax attention carries from call to call: the keys and values of the row's current run.

A cache is immutable; each call returns the next one. Padding writes nothing and advances nothing, and a row whose last
run is not the carried one (run 1) starts anew. Keys are stored as the caller rotated them, at their own positions.
"""

import dataclasses
from functools import partial
from typing import TypeVar

import jax
import jax.numpy as jnp

from effarch.ops.attention.blockwise import blockwise_attention
from effarch.ops.attention.reference import Visibility, attention, check_heads, mix, row_segments, shield, zero_padding
from effarch.ops.attention.window import LeftContext, window_attention
from effarch.ops.segments import Segments, as_segments
from effarch.typing import Array, Float, Int

FORMS = ("parallel", "chunkwise", "recurrent")


@partial(jax.tree_util.register_dataclass, data_fields=["k", "v", "length"], meta_fields=["version"])
@dataclasses.dataclass(frozen=True)
class KVCache:
    """All keys and values of the current run; slot = position in the run.

    Attributes:
      k: ``[B, S, Hk, D]`` keys; slots at and beyond ``length`` are not read.
      v: ``[B, S, Hk, V]`` values.
      length: ``[B]`` int32 tokens of the run so far. It goes on counting where the run outgrows S; those keys are lost.
      version: of this layout, for checkpoints.
    """

    k: Float[Array, "B S Hk D"]
    v: Float[Array, "B S Hk V"]
    length: Int[Array, " B"]
    version: int = 1

    @classmethod
    def init(cls, batch: int, max_length: int, heads: int, key_dim: int, value_dim: int, dtype) -> "KVCache":
        """An empty cache for runs of up to ``max_length`` tokens."""
        return cls(*_zeros(batch, max_length, heads, key_dim, value_dim, dtype), jnp.zeros((batch,), jnp.int32))


@partial(
    jax.tree_util.register_dataclass, data_fields=["k", "v", "sink_k", "sink_v", "length"], meta_fields=["version"]
)
@dataclasses.dataclass(frozen=True)
class RingCache:
    """The last ``window`` keys and values of the current run, and its first ``sinks``.

    Attributes:
      k: ``[B, window, Hk, D]`` keys; slot = position modulo the window.
      v: ``[B, window, Hk, V]`` values.
      sink_k: ``[B, sinks, Hk, D]`` keys of the first positions.
      sink_v: ``[B, sinks, Hk, V]`` their values.
      length: ``[B]`` int32 tokens of the run so far.
      version: of this layout, for checkpoints.
    """

    k: Float[Array, "B window Hk D"]
    v: Float[Array, "B window Hk V"]
    sink_k: Float[Array, "B sinks Hk D"]
    sink_v: Float[Array, "B sinks Hk V"]
    length: Int[Array, " B"]
    version: int = 1

    @classmethod
    def init(cls, batch: int, window: int, sinks: int, heads: int, key_dim: int, value_dim: int, dtype) -> "RingCache":
        """An empty cache."""
        ring = _zeros(batch, window, heads, key_dim, value_dim, dtype)
        return cls(*ring, *_zeros(batch, sinks, heads, key_dim, value_dim, dtype), jnp.zeros((batch,), jnp.int32))

    @property
    def position(self) -> Int[Array, "B window"]:
        """Position of the key in each slot of the ring; negative where there is none."""
        window = self.k.shape[1]
        slot = jnp.arange(window, dtype=jnp.int32)[None, :]
        newest = self.length[:, None] - 1
        return newest - (newest - slot) % window

    @property
    def left(self) -> LeftContext:
        """The cache as the left context of a chunk."""
        return LeftContext(self.k, self.v, self.position, self.sink_k, self.sink_v, self.length)


Cache = TypeVar("Cache", KVCache, RingCache)


def append(cache: Cache, k: Float[Array, "B T Hk D"], v: Float[Array, "B T Hk V"], segments=None) -> Cache:
    """The cache after a chunk: the tokens of each row's last run written to the slots of their positions.

    Args:
      cache: what was carried in; it belongs to run 1.
      k: keys of the chunk, rotated at their positions.
      v: values of the chunk.
      segments: `Segments` whose positions count from ``cache.length``, ``[B, T]`` ids of which 1 is the carried
        document, or None: every token continues it.

    Raises:
      ValueError: the chunk does not fit the cache's heads.
    """
    segments = resume(cache, k, v, segments)
    chosen = segments.real & (segments.run == segments.last_run[:, None])
    end = jnp.where(chosen, segments.position + 1, 0).max(axis=1)
    length = jnp.where(segments.real.any(axis=1), end, cache.length)
    if isinstance(cache, KVCache):
        slot = destination(segments, cache.k.shape[1])
        return dataclasses.replace(cache, k=put(cache.k, slot, k), v=put(cache.v, slot, v), length=length)
    window, sinks = cache.k.shape[1], cache.sink_k.shape[1]
    recent = chosen & (segments.position >= length[:, None] - window)
    slot = jnp.where(recent, segments.position % window, window)
    first = jnp.where(chosen, segments.position, sinks)
    return dataclasses.replace(
        cache,
        k=put(cache.k, slot, k),
        v=put(cache.v, slot, v),
        sink_k=put(cache.sink_k, first, k),
        sink_v=put(cache.sink_v, first, v),
        length=length,
    )


def attend(
    q: Float[Array, "B T Hq D"],
    k: Float[Array, "B T Hk D"],
    v: Float[Array, "B T Hk V"],
    cache: Cache,
    segments: Int[Array, "B T"] | Segments | None = None,
    *,
    form: str = "chunkwise",
    scale: float | None = None,
    cap: float | None = None,
    q_sink: Float[Array, "B T Hq D"] | None = None,
) -> tuple[Float[Array, "B T Hq V"], Cache]:
    """Causal attention of a chunk to the carried keys and to itself, and the next cache.

    A chunk of one token writes its slot and then reads the cache, in any form. Attention over a `RingCache` is that of
    `window_attention` with the cache's window and sinks.

    Args:
      q: queries of the chunk.
      k: keys of the chunk, rotated at their positions.
      v: values of the chunk.
      cache: what was carried in; it belongs to run 1.
      segments: as in `append`.
      form: "chunkwise" (O(T) memory), "recurrent" or "parallel" (scores in memory: for few tokens).
      scale: multiplies the logits, default ``D ** -0.5``.
      cap: bounds the scaled logits to ``cap * tanh(logits / cap)``, > 0; None does not.
      q_sink: with a `RingCache`, queries that read the sinks beyond the window, default ``q``.

    Returns:
      Output and the cache with the chunk appended.

    Raises:
      ValueError: shapes do not fit, ``form`` is unknown, or ``q_sink`` comes with a `KVCache`.
    """
    check_heads(q, k, v)
    if form not in FORMS:
        raise ValueError(f"form: expected one of {', '.join(FORMS)}, got {form!r}")
    if q_sink is not None and isinstance(cache, KVCache):
        raise ValueError("q_sink: expected None with a KVCache, which has no sinks")
    segments = resume(cache, k, v, segments)
    after = append(cache, k, v, segments)
    scale = q.shape[3] ** -0.5 if scale is None else scale
    if q.shape[1] == 1:
        run = segments.real.astype(jnp.int32)
        q = zero_padding(q, run)
        if isinstance(after, KVCache):
            return zero_padding(read(q, after, run, segments.position, scale, cap=cap), run), after
        q_sink = q if q_sink is None else zero_padding(q_sink, run)
        return zero_padding(_read_ring(q, q_sink, after, run, segments.position, scale, cap), run), after
    if isinstance(cache, RingCache):
        window, sinks = cache.k.shape[1], cache.sink_k.shape[1]
        form = "chunkwise" if form == "chunkwise" else "parallel"
        ring = partial(window_attention, window=window, sinks=sinks, left=cache.left, form=form)
        return ring(q, k, v, q_sink=q_sink, segment_ids=segments, scale=scale, cap=cap), after
    slot, filled = slots(cache)
    keys, values = (jnp.concatenate([a.astype(b.dtype), b], axis=1) for a, b in ((cache.k, k), (cache.v, v)))
    run_k = jnp.concatenate([filled, segments.run], axis=1)
    position_k = jnp.concatenate([slot, segments.position], axis=1)
    visibility = Visibility(segments.run, segments.position, run_k, position_k)
    compute = blockwise_attention if form == "chunkwise" else attention
    return compute(q, keys, values, visibility=visibility, scale=scale, cap=cap), after


def read(
    q: Array,
    cache: KVCache,
    run: Array,
    position: Array,
    scale: float,
    bias: Array | None = None,
    *,
    cap: float | None = None,
) -> Float[Array, "B 1 Hq V"]:
    """One query per row over a cache that already holds its key; ``bias`` and ``cap`` as `reference.mix` takes them."""
    slot, filled = slots(cache)
    seen = Visibility(run, position, filled, slot).pairs()

    def shielded() -> Array:
        return mix([(q, *shield(cache.k, cache.v, filled), seen)], scale=scale, cap=cap, bias=bias)

    # A slot that is not read may hold a NaN of an earlier document. Making sure for every token would cost as much as
    # attention itself, so look at the result.
    o = mix([(q, cache.k, cache.v, seen)], scale=scale, cap=cap, bias=bias)
    return jax.lax.cond(jnp.isfinite(o).all(), lambda: o, shielded)


def _read_ring(
    q: Array, q_sink: Array, cache: RingCache, run: Array, position: Array, scale: float, cap: float | None
) -> Float[Array, "B 1 Hq V"]:
    """One query per row over a ring that already holds its key, and over the sinks beyond the window."""
    window, sinks = cache.k.shape[1], cache.sink_k.shape[1]
    filled = (cache.position >= 0).astype(jnp.int32)
    near = Visibility(run, position, filled, cache.position, window=window).pairs()
    groups = [(q, *shield(cache.k, cache.v, filled), near)]
    if sinks:
        slot = jnp.broadcast_to(jnp.arange(sinks, dtype=jnp.int32), (run.shape[0], sinks))
        there = (slot < cache.length[:, None]).astype(jnp.int32)
        beyond = Visibility(run, position - window, there, slot).pairs()
        groups.append((q_sink, *shield(cache.sink_k, cache.sink_v, there), beyond))
    return mix(groups, scale=scale, cap=cap)


def slots(cache: KVCache) -> tuple[Int[Array, "B S"], Int[Array, "B S"]]:
    """The position of each slot, and 1 where it is filled."""
    slot = jnp.broadcast_to(jnp.arange(cache.k.shape[1], dtype=jnp.int32), cache.k.shape[:2])
    return slot, (slot < cache.length[:, None]).astype(jnp.int32)


def resume(cache: KVCache | RingCache, k: Array, v: Array, segments: Array | Segments | None) -> Segments:
    """The chunk's segments, run 1 counting on from the cache's length."""
    batch, time = k.shape[:2]
    for name, old, new in (("k", cache.k, k), ("v", cache.v, v)):
        if (old.shape[0], *old.shape[2:]) != (batch, *new.shape[2:]):
            raise ValueError(f"{name}: expected [B, T, H, D] to fit a cache {list(old.shape)}, got {list(new.shape)}")
    if segments is None:
        row = row_segments(None, batch, time)
        return dataclasses.replace(row, position=row.position + cache.length[:, None])
    return row_segments(as_segments(segments, length=cache.length), batch, time)


def destination(segments: Segments, size: int) -> Int[Array, "B T"]:
    """The slot of each token in a cache that holds whole runs: its position; ``size``, nowhere, but in the last run."""
    return jnp.where(segments.real & (segments.run == segments.last_run[:, None]), segments.position, size)


def put(held: Array, slot: Int[Array, "B T"], new: Array) -> Array:
    """``new`` written to the slots of its rows; slots out of range are dropped."""
    rows = jnp.arange(held.shape[0], dtype=jnp.int32)[:, None]
    return held.at[rows, slot].set(new.astype(held.dtype), mode="drop")


def _zeros(batch: int, slots: int, heads: int, key_dim: int, value_dim: int, dtype) -> tuple[Array, Array]:
    return jnp.zeros((batch, slots, heads, key_dim), dtype), jnp.zeros((batch, slots, heads, value_dim), dtype)
