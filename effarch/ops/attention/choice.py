"""Which blocks a query chooses, and reading chosen slots of a cache: what MoBA, NSA and decoding share."""

from collections.abc import Callable

import jax
import jax.numpy as jnp

from effarch.ops.attention.cache import KVCache
from effarch.ops.attention.reference import dot, mix
from effarch.ops.precision import accumulator
from effarch.typing import Array, Bool, Float, Int

CHUNK = 2**18  # scores per head formed at once


def choose_blocks(
    q: Float[Array, "B T Hq D"],
    means: Float[Array, "B N Hk D"],
    *,
    run_q: Int[Array, "B T"],
    position_q: Int[Array, "B T"],
    run: Int[Array, "B N"],
    number: Int[Array, "B N"],
    size: int,
    count: int,
    score: Callable[[Array, Array, Array], Array],
) -> Int[Array, "B T Hs M"]:
    """The best past blocks of every query, its own block not among them. No gradient passes.

    Args:
      q: queries. means: one key for each block.
      run_q, position_q: of the queries. run, number: run of each block (0: none), and which of its document it is.
      size: positions of a block. count: how many blocks to choose.
      score: ``(q . mean [B,Hk,Hq/Hk,c,N], distance [B,c,N], number [B,1,N]) -> [B,Hs,c,N]``; the distance is the
        number of blocks from the query's own back to this one, negative where that is incomplete or another document's.

    Returns:
      ``[B, T, Hs, count]`` int32 indices of blocks; -1 where there are fewer to choose from.
    """
    q, means = jax.lax.stop_gradient((q, means))
    (batch, time, heads, width), blocks = q.shape, means.shape[1]
    chunk = min(time, max(8, CHUNK // blocks))
    q = q.reshape(batch, time, -1, heads // means.shape[2] * width)

    def cut(x: Array) -> Array:
        x = jnp.pad(x, ((0, 0), (0, -time % chunk)) + ((0, 0),) * (x.ndim - 2))
        return jnp.moveaxis(x.reshape(batch, -1, chunk, *x.shape[2:]), 1, 0)

    def choose(xs: tuple[Array, Array, Array]) -> Array:
        q, run_q, position = xs
        q = q.reshape(batch, chunk, means.shape[2], -1, width)
        position = position[:, :, None]
        ended = (run[:, None] == run_q[:, :, None]) & (run_q > 0)[:, :, None]
        ended &= number[:, None] * size + size - 1 <= position
        distance = jnp.where(ended, position // size - number[:, None], -1)
        found = score(dot("btkgd,bnkd->bkgtn", q, means), distance, number[:, None])
        found = jnp.where((distance > 0)[:, None], found, -jnp.inf)
        best, index = jax.lax.top_k(found, min(count, blocks))
        return jnp.where(best > -jnp.inf, index, -1).astype(jnp.int32)

    index = jax.lax.map(choose, (cut(q), cut(run_q), cut(position_q)))
    index = jnp.moveaxis(index, 0, 2)  # [B, Hs, chunks, c, M]
    index = index.reshape(*index.shape[:2], -1, index.shape[4])[:, :, :time].swapaxes(1, 2)
    return jnp.pad(index, ((0, 0), (0, 0), (0, 0), (0, count - index.shape[3])), constant_values=-1)


def block_means(x: Float[Array, "B S H D"], length: Int[Array, " B"], size: int) -> Float[Array, "B N H D"]:
    """The mean of every ``size`` slots of a cache, those filled; N = max(1, S // size)."""
    slot = jnp.arange(x.shape[1], dtype=jnp.int32)[None, :, None, None]
    x = jnp.where(slot < length[:, None, None, None], x, 0).astype(accumulator(x))
    blocks = max(1, x.shape[1] // size)
    x = jnp.pad(x, ((0, 0), (0, max(0, size - x.shape[1])), (0, 0), (0, 0)))[:, : blocks * size]
    return x.reshape(x.shape[0], blocks, size, -1).mean(axis=2).reshape(x.shape[0], blocks, *x.shape[2:])


def next_mean(
    means: Float[Array, "B N H D"], x: Float[Array, "B S H D"], length: Int[Array, " B"], size: int
) -> Float[Array, "B N H D"]:
    """`block_means` after one more token: the mean of the block that the newest is in, formed anew."""
    block = jnp.maximum(length - 1, 0) // size
    slot = block[:, None] * size + jnp.arange(size, dtype=jnp.int32)[None]
    own = jax.vmap(lambda row, i: row[i])(x, jnp.minimum(slot, x.shape[1] - 1))
    there = (slot < jnp.minimum(length, x.shape[1])[:, None])[:, :, None, None]
    mean = jnp.where(there, own, 0).astype(accumulator(x)).mean(axis=1)
    return jax.vmap(lambda row, i, new: row.at[i].set(new, mode="drop"))(means, block, mean.astype(means.dtype))


def read_slots(
    q: Float[Array, "B 1 Hq D"],
    cache: KVCache,
    slot: Int[Array, "B Hs M"],
    seen: Bool[Array, "B Hs M"],
    *,
    scale: float,
) -> Float[Array, "B 1 Hq V"]:
    """Attention of one query per row to some slots of a cache, and only those are read.

    Args:
      q: queries. cache: holds the query's own key already.
      slot: the lists; Hs is 1 (for all heads), or a multiple of Hk that divides Hq. seen: which entries count.
      scale: multiplies the logits.
    """
    kv_heads = cache.k.shape[2]
    lists = max(slot.shape[1], kv_heads)
    slot, seen = (jnp.broadcast_to(x, (q.shape[0], lists, slot.shape[2])) for x in (slot, seen))
    head = (jnp.arange(lists, dtype=jnp.int32) // (lists // kv_heads))[:, None]

    def read(x: Array) -> Array:
        found = jax.vmap(lambda row, i: row[i, head])(x, jnp.clip(slot, 0, x.shape[1] - 1))
        return jnp.where(seen[..., None], found, 0).swapaxes(1, 2).astype(q.dtype)

    q = jnp.where(seen.any(axis=(1, 2))[:, None, None, None], q, 0)  # padding, whatever it holds
    return mix([(q, read(cache.k), read(cache.v), seen[:, :, None, None])], scale=scale)


def blocks_of(index: Int[Array, "B Hs M"], size: int) -> tuple[Int[Array, "B Hs S"], Bool[Array, "B Hs S"]]:
    """The slots of blocks of ``size`` positions, and which of them there are; negative indices are none."""
    inside = jnp.arange(size, dtype=jnp.int32)[None, None, None]
    slot = index[..., None] * size + inside
    there = jnp.broadcast_to((index >= 0)[..., None], slot.shape)
    return slot.reshape(*index.shape[:2], -1), there.reshape(*index.shape[:2], -1)
