"""Softmax attention to chosen blocks of keys: every query has a list of blocks and sees each of them whole.

    o_i = sum over the blocks m of i's list, over the keys j of m, of exp(scale * q_i . k_j - logsumexp_i) v_j

The list is data: drawn once (BigBird) or chosen by the query itself (NSA, MoBA). What a pattern has besides, the block
that the query is in, a window, a stride, is `blockwise` or `strided` attention; `merge` makes one softmax of them all.
Blocks are sorted to, not gathered for: for the n-th entry of all lists at once, queries are ordered by the block they
want and cut into tiles of one block each, as tokens are sent to the experts of a mixture. So keys are read once per
tile instead of once per query, every product is one of matrices, and the entries are added with a running maximum.
Time is that of the pairs kept, memory O(T); the backward pass makes the same tiles anew from the log-sum.
"""

from functools import partial

import jax
import jax.numpy as jnp

from effarch.ops.attention.reference import EMPTY, MASKED, dot
from effarch.ops.loops import data_loop
from effarch.ops.precision import accumulator
from effarch.typing import Array, Bool, Float, Int

STEP = 2**16  # logits per head formed at once, as many as in two blocks of `blockwise`


def selected_attention(
    q: Float[Array, "B T Hq D"],
    k: Float[Array, "B N C Hk D"],
    v: Float[Array, "B N C Hk V"],
    index: Int[Array, "B T Hs M"],
    *,
    scale: float,
) -> tuple[Float[Array, "B T Hq V"], Float[Array, "B T Hq"]]:
    """Attention to whole blocks of keys, and the log of its sum, for whoever adds other keys to the softmax.

    Args:
      q: queries.
      k: blocks of keys; none that is chosen may hold a key that the query must not see.
      v: blocks of values.
      index: which blocks each query sees, in 0..N-1 and each once; negative entries are none. Hs lists a query: Hk
        divides Hs and Hs divides Hq, query head h uses list ``h // (Hq / Hs)`` (one for its group, or its own).
      scale: multiplies the logits.

    Returns:
      Output and log-sum; 0 and `reference.EMPTY` where the list is empty.

    Raises:
      ValueError: shapes or head counts disagree.
    """
    (batch, time, heads, width), kv_heads = q.shape, k.shape[3]
    if k.shape[0] != batch or k.shape[4] != width or v.shape[:4] != k.shape[:4]:
        raise ValueError(
            f"k, v: expected [{batch}, N, C, Hk, {width}] and [.., V], got {list(k.shape)}, {list(v.shape)}"
        )
    lists = index.shape[2]
    if index.shape[:2] != (batch, time) or lists % kv_heads or heads % lists:
        raise ValueError(
            f"index: expected [{batch}, {time}, Hs, M], Hs a multiple of Hk = {kv_heads} that divides Hq = {heads}, "
            f"got {list(index.shape)}"
        )
    kb, vb = (x.transpose(0, 3, 1, 2, 4).reshape(-1, *x.shape[1:3], x.shape[4]) for x in (k, v))
    lists_per_kv = lists // kv_heads
    entries = index.transpose(3, 0, 2, 1).reshape(-1, batch * kv_heads, lists_per_kv, time).astype(jnp.int32)
    o, logsumexp = _selected(float(scale), _by_list(q, kv_heads, lists), kb, vb, entries)
    return _by_time(o, batch, heads), _by_time(logsumexp, batch, heads)[..., 0]


def _by_list(x: Array, kv_heads: int, lists: int) -> Float[Array, "Y R T GD"]:
    """``[B,T,Hq,D]`` -> rows and key heads, the lists of a key head, time, the query heads of a list."""
    batch, time = x.shape[:2]
    return x.reshape(batch, time, lists, -1).swapaxes(1, 2).reshape(batch * kv_heads, lists // kv_heads, time, -1)


def _by_time(x: Float[Array, "Y R T GV"], batch: int, heads: int) -> Float[Array, "B T Hq V"]:
    return x.reshape(batch, -1, *x.shape[2:]).swapaxes(1, 2).reshape(batch, x.shape[2], heads, -1)


@partial(jax.custom_vjp, nondiff_argnums=(0,))
def _selected(scale: float, q: Array, k: Array, v: Array, entries: Array) -> tuple[Array, Array]:
    return _forward(scale, q, k, v, entries)


def _fwd(scale, q, k, v, entries):
    o, logsumexp = _forward(scale, q, k, v, entries)
    return (o, logsumexp), (q, k, v, entries, o, logsumexp)


def _forward(scale: float, q: Float[Array, "Y R T GD"], k: Float[Array, "Y N C D"], v: Array, entries: Array):
    sums = accumulator(q)
    group = q.shape[3] // k.shape[3]

    def entry(carry, wanted):
        peak, total, acc = carry
        tiles = _Tiles(wanted, k.shape[1], k.shape[2])

        def step(i, found):
            block, query, real = tiles.at(i, group)
            q_s, k_s, v_s = _rows(q, query), _pick(k, block), _pick(v, block)
            logits = dot("yjmd,yjcd->yjmc", _matrix(q_s, tiles, k.shape[3]), k_s) * scale
            logits = jnp.where(real, logits, MASKED)
            higher = logits.max(axis=-1, keepdims=True)
            weights = jnp.exp(logits - higher)
            sum_s = weights.sum(axis=-1, keepdims=True)
            o_s = dot("yjmc,yjcv->yjmv", weights.astype(v.dtype), v_s) / sum_s
            both = (o_s, higher + jnp.log(sum_s))
            return tuple(tiles.put(into, i, x) for into, x in zip(found, both, strict=True))

        found = (tiles.empty(group * v.shape[3], sums), tiles.empty(group, sums))
        o, logsumexp = (tiles.back(x) for x in data_loop(tiles.steps, step, found, expected=tiles.most))
        there = (wanted >= 0)[..., None]
        logsumexp = jnp.where(there, logsumexp, EMPTY)
        higher = jnp.maximum(peak, logsumexp)
        fade, new = jnp.exp(peak - higher), jnp.where(there, jnp.exp(logsumexp - higher), 0)
        return (higher, total * fade + new, acc * _wide(fade, acc) + jnp.where(there, o * _wide(new, o), 0)), None

    rows = q.shape[:3]
    zeros = partial(jnp.zeros_like, q, dtype=sums)  # of q: on shards they differ from device to device
    start = zeros(shape=(*rows, group)) + EMPTY, zeros(shape=(*rows, group)), zeros(shape=(*rows, group * v.shape[3]))
    (peak, total, acc), _ = jax.lax.scan(entry, start, entries)
    total = jnp.where(total > 0, total, 1)
    return (acc / _wide(total, acc)).astype(q.dtype), peak + jnp.log(total)


def _bwd(scale, residuals, gradients):
    q, k, v, entries, o, logsumexp = residuals
    do, dlogsumexp = gradients
    sums, width = accumulator(q), k.shape[3]
    group = q.shape[3] // width
    products = (do.astype(sums) * o.astype(sums)).reshape(*o.shape[:3], group, -1)
    shift = dlogsumexp.astype(sums) - products.sum(axis=-1)  # d logits = p * (do . v - do . o + d logsumexp)

    def entry(carry, wanted):
        dq, dk, dv = carry
        tiles = _Tiles(wanted, k.shape[1], k.shape[2])

        def step(i, carry):
            found, dk, dv = carry
            block, query, real = tiles.at(i, group)
            q_s, do_s, l_s, s_s = (_rows(x, query) for x in (q, do, logsumexp, shift))
            q_s, do_s = _matrix(q_s, tiles, width), _matrix(do_s, tiles, v.shape[3])
            l_s, s_s = _matrix(l_s, tiles, 1), _matrix(s_s, tiles, 1)
            k_s, v_s = _pick(k, block), _pick(v, block)
            q_s, do_s = jnp.where(real, q_s, 0), jnp.where(real, do_s, 0)
            logits = jnp.where(real, dot("yjmd,yjcd->yjmc", q_s, k_s) * scale, MASKED)
            weights = jnp.exp(logits - jnp.where(real, l_s, 0))
            dlogits = weights * (dot("yjmv,yjcv->yjmc", do_s, v_s) + s_s) * scale
            dlogits = jnp.where(real, dlogits, 0).astype(q.dtype)  # 0 * inf of an empty place stays out
            dk = _add(dk, block, dot("yjmc,yjmd->yjcd", dlogits, q_s))
            dv = _add(dv, block, dot("yjmc,yjmv->yjcv", weights.astype(v.dtype), do_s))
            return tiles.put(found, i, dot("yjmc,yjcd->yjmd", dlogits, k_s)), dk, dv

        start = (tiles.empty(q.shape[3], sums), dk, dv)
        found, dk, dv = data_loop(tiles.steps, step, start, expected=tiles.most)
        return (dq + jnp.where((wanted >= 0)[..., None], tiles.back(found), 0), dk, dv), None

    start = tuple(jnp.zeros_like(x, dtype=sums) for x in (q, k, v))
    (dq, dk, dv), _ = jax.lax.scan(entry, start, entries)
    return dq.astype(q.dtype), dk.astype(k.dtype), dv.astype(v.dtype), None


_selected.defvjp(_fwd, _bwd)


class _Tiles:
    """Queries sorted by the block they want, cut into tiles of one block; the last tile of a block has empty places."""

    def __init__(self, wanted: Int[Array, "Y R T"], blocks: int, block_size: int) -> None:
        self.lead, time = wanted.shape[:2], wanted.shape[2]
        self.size = size = min(max(block_size // 2, 8), 128)  # half a block: few empty places, and still a matrix
        most = time // size + min(blocks, time)
        self.tiles = tiles = max(1, min(STEP // (block_size * size), most))  # of one step
        block = jnp.where(wanted < 0, blocks, wanted)
        order, ordered = _sort(block, blocks)
        edges = _below(ordered, jnp.arange(blocks + 1, dtype=jnp.int32))
        first, count = edges[..., :-1], jnp.diff(edges, axis=-1)
        ends = jnp.cumsum(-(-count // size), axis=-1, dtype=jnp.int32)
        starts = ends - -(-count // size)
        self.steps, self.most = -(-ends[..., -1].max() // tiles), -(-most // tiles)

        tile = jnp.arange(-(-most // tiles) * tiles, dtype=jnp.int32)
        self.block = jnp.minimum(_below(ends, tile + 1), blocks - 1)
        rank = (tile[None, None] - _take(starts, self.block)) * size
        place = rank[..., None] + jnp.arange(size, dtype=jnp.int32)[None, None, None]
        self.valid = place < _take(count, self.block)[..., None]
        place = jnp.where(self.valid, place + _take(first, self.block)[..., None], 0)
        self.query = _take(order, place.reshape(*self.lead, -1)).reshape(place.shape)

        rank = _each(lambda x: jnp.zeros_like(x).at[x].set(jnp.arange(time, dtype=jnp.int32)))(order)
        known = jnp.minimum(block, blocks - 1)
        self.slot = jnp.maximum(_take(starts, known) * size + rank - _take(first, known), 0)

    def at(self, i: Array, group: int) -> tuple[Int[Array, "Y J"], Int[Array, "Y R S"], Bool[Array, "Y J M 1"]]:
        """Blocks, queries, and which places are filled (for every head), of the i-th step; J = R * tiles."""
        parts = (self.block, self.query, self.valid)
        block, query, valid = (jax.lax.dynamic_slice_in_dim(x, i * self.tiles, self.tiles, 2) for x in parts)
        block, valid = block.reshape(self.lead[0], -1), valid.reshape(self.lead[0], -1, self.size)
        return block, query.reshape(*self.lead, -1), jnp.repeat(valid, group, axis=2)[..., None]

    def empty(self, width: int, dtype) -> Float[Array, "Y R S F"]:
        return jnp.zeros_like(self.block, shape=(*self.lead, self.block.shape[2] * self.size, width), dtype=dtype)

    def put(self, into: Float[Array, "Y R S F"], i: Array, x: Float[Array, "Y J M F"]) -> Float[Array, "Y R S F"]:
        """The results of the i-th step in their places."""
        step = self.tiles * self.size
        return jax.lax.dynamic_update_slice_in_dim(into, x.reshape(*self.lead, step, into.shape[3]), i * step, 2)

    def back(self, x: Float[Array, "Y R S F"]) -> Float[Array, "Y R T F"]:
        """Results in the order of the queries; anything where a query wanted no block."""
        return _rows(x, jnp.minimum(self.slot, x.shape[2] - 1))


def _sort(block: Int[Array, "Y R T"], blocks: int) -> tuple[Array, Array]:
    """Queries by block, and their blocks."""
    time = block.shape[2]
    if (blocks + 1) * time < 2**31:  # one key per query sorts several times faster than pairs do
        both = jnp.sort(block * time + jnp.arange(time, dtype=jnp.int32)[None, None], axis=-1)
        return both % time, both // time
    order = jnp.argsort(block, axis=-1).astype(jnp.int32)
    return order, _take(block, order)


def _below(x: Int[Array, "Y R N"], values: Int[Array, " M"]) -> Int[Array, "Y R M"]:
    """How many of each ascending row are less than each value: `jnp.searchsorted`, which jax 0.10 refuses on shards."""
    count = x.shape[2]
    zeros = jnp.zeros_like(x, shape=(*x.shape[:2], *values.shape))

    def halve(_, span: tuple[Array, Array]) -> tuple[Array, Array]:
        low, high = span
        middle = (low + high) // 2
        up = (low < high) & (_take(x, jnp.minimum(middle, count - 1)) < values[None, None])
        return jnp.where(up, middle + 1, low), jnp.where(up, high, middle)

    return jax.lax.fori_loop(0, count.bit_length(), halve, (zeros, zeros + count))[0]


def _each(fn):
    """``fn`` for each row and list: batch dims, so that a sharded batch stays where it is."""
    return jax.vmap(jax.vmap(fn))


def _rows(x: Float[Array, "Y R T F"], i: Int[Array, "Y R S"]) -> Float[Array, "Y R S F"]:
    return _each(lambda x, i: x[i])(x, i)


def _take(x: Int[Array, "Y R N"], i: Int[Array, "Y R W"]) -> Int[Array, "Y R W"]:
    return jnp.take_along_axis(x, i, axis=2)


def _pick(x: Float[Array, "Y N C D"], block: Int[Array, "Y J"]) -> Float[Array, "Y J C D"]:
    return jax.vmap(lambda row, i: row[i])(x, block)


def _add(x: Float[Array, "Y N C D"], block: Int[Array, "Y J"], update: Array) -> Float[Array, "Y N C D"]:
    return jax.vmap(lambda row, i, u: row.at[i].add(u))(x, block, update)


def _matrix(x: Float[Array, "Y R S GD"], tiles: _Tiles, width: int) -> Float[Array, "Y J M D"]:
    """The queries of each tile, all heads of the list, below one another."""
    return x.reshape(x.shape[0], -1, tiles.size * x.shape[3] // width, width)


def _wide(x: Float[Array, "Y R T G"], like: Float[Array, "Y R T GV"]) -> Float[Array, "Y R T GV"]:
    """One value per head for all of its channels."""
    return jnp.repeat(x, like.shape[3] // x.shape[3], axis=3)
