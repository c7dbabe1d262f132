"""Documents laid end to end: where patterns that count positions inside a document find their keys.

A `Line` holds the keys of a row with nothing between: first the carried part of run 1 (out of a cache), then the row's
tokens in order, padding last. There the key at position p of a query's own document stands p places after the
document's first, wherever in the row, or before it, the document began. So blocks, strides and dilations by position
are exact for packed rows, for padding anywhere, and for a chunk that goes on with a cache. Of a ring the line has what
the ring still holds: places and positions differ by a constant, but the document's first positions may be missing.
"""

import dataclasses
from collections.abc import Callable
from functools import partial

import jax
import jax.numpy as jnp

from effarch.ops.attention.blockwise import BLOCK, attention_and_logsumexp
from effarch.ops.attention.cache import Cache, KVCache, append, resume, slots
from effarch.ops.attention.reference import Visibility, mix, row_segments, shield, zero_padding
from effarch.ops.attention.window import LEAST_BLOCK
from effarch.ops.segments import Segments, as_segments, compact, compacted, partition
from effarch.typing import Array, Bool, Float, Int


@dataclasses.dataclass(frozen=True)
class Line:
    """Keys and values laid end to end, and where the queries of the row stand in it.

    Attributes:
      k: ``[B, L, Hk, D]`` keys. v: ``[B, L, Hk, V]`` values.
      run: ``[B, L]`` int32 run of each key, 0 at padding, which comes last.
      position: ``[B, L]`` int32 position of each key in its run.
      run_q, position_q: ``[B, T]`` the same of the queries, in the order of the row.
      place: ``[B, T]`` int32 where in the line each token of the row stands.
      order: ``[B, T]`` int32 the tokens of the row in the order of the line.
      start: ``[B]`` int32 where the row's first real token stands: after the carried keys.
    """

    k: Float[Array, "B L Hk D"]
    v: Float[Array, "B L Hk V"]
    run: Int[Array, "B L"]
    position: Int[Array, "B L"]
    run_q: Int[Array, "B T"]
    position_q: Int[Array, "B T"]
    place: Int[Array, "B T"]
    order: Int[Array, "B T"]
    start: Int[Array, " B"]

    def of(self, first: Array, count: int) -> "Line":
        """The line as only ``count`` of the row's tokens from ``first`` on see it; those real stand side by side."""
        cut = partial(jax.lax.dynamic_slice_in_dim, start_index=first, slice_size=count, axis=1)
        run, position, place = (cut(x) for x in (self.run_q, self.position_q, self.place))
        start = jnp.where(run > 0, place, self.run.shape[1]).min(axis=1)
        own = {"run_q": run, "position_q": position, "place": place, "order": partition(run > 0)[0], "start": start}
        return dataclasses.replace(self, **own)

    def seen(self, pattern: Callable[[Array, Array], Array]) -> Bool[Array, "B T L"]:
        """Who sees whom in memory: keys of one's own run that ``pattern(position_q, position_k)`` allows."""
        whole = Visibility(self.run_q, self.position_q, self.run, self.position, causal=False).pairs()
        return whole & pattern(self.position_q[:, :, None], self.position[:, None, :])

    def pieces(self, size: int) -> Visibility:
        """Who sees whom where the documents are cut into pieces of ``size`` positions."""
        first = (self.run > 0) & (self.position % size == 0)
        piece = jnp.where(self.run > 0, jnp.cumsum(first.astype(jnp.int32), axis=1, dtype=jnp.int32), 0)
        piece_q = jnp.where(self.run_q > 0, jnp.take_along_axis(piece, self.place, axis=1), 0)
        return Visibility(piece_q, self.position_q, piece, self.position)

    def window(self, q: Array, window: int, *, ahead: int = 0, scale: float) -> tuple[Array, Array]:
        """Attention to the positions in (p + ahead - window, p + ahead], and the log of its sum."""
        near = Visibility(self.run_q, self.position_q + ahead, self.run, self.position, window=window)
        return attention_and_logsumexp(q, self.k, self.v, near, scale=scale, block_size=block_for(window))

    def own_piece(self, q: Array, size: int, *, scale: float) -> tuple[Array, Array]:
        """Causal attention inside one's own piece of ``size`` positions, and the log of its sum."""
        own = self.pieces(size)
        return attention_and_logsumexp(q, self.k, self.v, own, scale=scale, block_size=block_for(size))

    def dense(self, q: Array, seen: Bool[Array, "B ... T L"], *, scale: float) -> Float[Array, "B T Hq V"]:
        """Attention with its T x L scores in memory; ``seen`` as `reference.mix` takes it."""
        k, v = shield(self.k, self.v, self.run)
        return zero_padding(mix([(zero_padding(q, self.run_q), k, v, seen)], scale=scale), self.run_q)


@dataclasses.dataclass(frozen=True)
class Blocks:
    """The whole blocks of a line: positions [m C, (m + 1) C) of a document, for every m that the document fills.

    Attributes:
      k: ``[B, N, C, Hk, D]``. v: ``[B, N, C, Hk, V]``.
      run: ``[B, N]`` int32 run of each block; 0 where there is none.
      number: ``[B, N]`` int32 which block of its document it is.
      first: ``[B, T]`` int32 the index of the first block of each query's document.
      member: ``[B, L]`` int32 the index of the block that each key is in; negative for none.
    """

    k: Float[Array, "B N C Hk D"]
    v: Float[Array, "B N C Hk V"]
    run: Int[Array, "B N"]
    number: Int[Array, "B N"]
    first: Int[Array, "B T"]
    member: Int[Array, "B L"]

    @classmethod
    def of(cls, line: Line, size: int) -> "Blocks":
        """The whole blocks of ``size`` positions; N = max(1, L // size)."""
        real = line.run > 0
        ends = real & (line.position % size == size - 1)
        last, there = flagged(ends, max(1, line.run.shape[1] // size))
        tokens = last[:, :, None] - jnp.arange(size - 1, -1, -1, dtype=jnp.int32)[None, None]
        k, v = (gather(x, jnp.maximum(tokens, 0).reshape(x.shape[0], -1)) for x in (line.k, line.v))
        run = jnp.where(there, jnp.take_along_axis(line.run, last, axis=1), 0)
        number = jnp.take_along_axis(line.position, last, axis=1) // size
        k, v = (x.reshape(*tokens.shape, *x.shape[2:]) for x in (k, v))
        ends = ends.astype(jnp.int32)
        before = jnp.cumsum(ends, axis=1, dtype=jnp.int32) - ends  # blocks that ended before the key
        begin = jnp.maximum(line.place - line.position_q, 0)
        of_key = jnp.minimum(before, run.shape[1] - 1)
        inside = real & (jnp.take_along_axis(run, of_key, axis=1) == line.run)
        return cls(
            *(jnp.where(there[:, :, None, None, None], x, 0) for x in (k, v)),
            run=run,
            number=number,
            first=jnp.take_along_axis(before, begin, axis=1),
            member=jnp.where(inside, of_key, -1),
        )

    def chosen(self, index: Int[Array, "B T Hs M"]) -> Bool[Array, "B Hk R T L"]:
        """In memory: which keys are in the blocks that queries chose, by R = Hs / Hk lists for each key head."""
        member = jnp.where(self.member < 0, -2, self.member)[:, None, None, :, None]
        hit = (index.swapaxes(1, 2)[:, :, :, None] == member).any(axis=-1)
        return hit.reshape(hit.shape[0], self.k.shape[3], -1, *hit.shape[2:])


def lay_out(
    k: Float[Array, "B T Hk D"],
    v: Float[Array, "B T Hk V"],
    segments: Int[Array, "B T"] | Segments | None = None,
    cache: Cache | None = None,
) -> tuple[Line, Cache | None]:
    """The line of a row, after what a cache carries of its run 1, and the cache with the row appended.

    Args:
      k: keys, rotated at their positions. v: values.
      segments: documents of the row; None: one document, or all of it goes on with the cache's.
      cache: what was carried in; it belongs to run 1. Of a `RingCache`, the window; its sinks are not in the line.
    """
    batch, time = k.shape[:2]
    nothing = jnp.zeros((batch,), jnp.int32)
    if cache is None:
        row = row_segments(segments, batch, time)
        held = row if segments is None else compacted(row)
        if segments is not None:
            k, v = compact(k, row), compact(v, row)
        return Line(k, v, held.run, held.position, row.run, row.position, row.inverse, row.order, nothing), None
    row = resume(cache, k, v, segments)
    after = append(cache, k, v, row)
    size = cache.k.shape[1]
    carried_k, carried_v, filled, before = _carried(cache)
    both = as_segments(jnp.concatenate([filled, row.run], axis=1), length=before)
    k, v = (compact(jnp.concatenate([a.astype(b.dtype), b], 1), both) for a, b in ((carried_k, k), (carried_v, v)))
    held, start = compacted(both), jnp.minimum(cache.length, size)
    position_q, place = both.position[:, size:], both.inverse[:, size:]
    return Line(k, v, held.run, held.position, row.run, position_q, place, row.order, start), after


def _carried(cache: Cache) -> tuple[Array, Array, Int[Array, "B S"], Int[Array, " B"]]:
    """Keys and values by age, 1 where there is one, and the position of the oldest."""
    if isinstance(cache, KVCache):
        return cache.k, cache.v, slots(cache)[1], jnp.zeros_like(cache.length)
    oldest = jnp.argsort(cache.position, axis=1)
    filled = jnp.take_along_axis(cache.position, oldest, axis=1) >= 0
    before = jnp.maximum(cache.length - cache.k.shape[1], 0)
    return gather(cache.k, oldest), gather(cache.v, oldest), filled.astype(jnp.int32), before


def block_for(window: int) -> int:
    """Queries, and keys, in a block where about ``window`` positions are seen."""
    return max(LEAST_BLOCK, min(window, BLOCK))


def gather(x: Float[Array, "B L ..."], tokens: Int[Array, "B S"]) -> Float[Array, "B S ..."]:
    """Rows of ``x``; a batched gather, so that a sharded batch stays where it is."""
    return jax.vmap(lambda row, i: row[i])(x, tokens)


def flagged(flags: Bool[Array, "B L"], most: int) -> tuple[Int[Array, "B N"], Bool[Array, "B N"]]:
    """Where the first ``most`` flags are, in order, and which of those places exist."""
    rank = jnp.cumsum(flags.astype(jnp.int32), axis=1, dtype=jnp.int32)
    at = jnp.broadcast_to(jnp.arange(flags.shape[1], dtype=jnp.int32), flags.shape)
    rows = jnp.arange(flags.shape[0], dtype=jnp.int32)[:, None]
    found = jnp.zeros((flags.shape[0], most), jnp.int32).at[rows, jnp.where(flags, rank - 1, most)].set(at, mode="drop")
    return found, jnp.arange(most, dtype=jnp.int32)[None] < rank[:, -1:]
