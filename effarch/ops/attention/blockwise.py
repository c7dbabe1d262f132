"""Softmax attention in blocks: what `reference` computes, in O(T) memory forward and backward.

FlashAttention (2205.14135, 2307.08691): the softmax is accumulated over blocks of keys with a running maximum, and the
backward pass recomputes the scores from q, k, v, o and the log of the softmax's sum. Departs from the papers in how
blocks are left out: each row of the batch visits only the span of blocks that some query of the block can see, known
from the blocks' first and last run and position. So causal rows cost half, packed rows the sum of their documents'
squares (each turn takes as many blocks as the row that needs most), a window T * window, a cache's unused end nothing.
"""

from functools import partial

import jax
import jax.numpy as jnp

from effarch.ops.attention.reference import EMPTY, MASKED, Visibility, capped, dot, resolve, shield, zero_padding
from effarch.ops.loops import data_loop
from effarch.ops.precision import accumulator
from effarch.ops.segments import Segments
from effarch.typing import Array, Bool, Float, Int

BLOCK = 256  # queries or keys per block


def blockwise_attention(
    q: Float[Array, "B T Hq D"],
    k: Float[Array, "B S Hk D"],
    v: Float[Array, "B S Hk V"],
    *,
    causal: bool = True,
    segment_ids: Int[Array, "B T"] | Segments | None = None,
    visibility: Visibility | None = None,
    scale: float | None = None,
    cap: float | None = None,
    block_size: int = BLOCK,
) -> Float[Array, "B T Hq V"]:
    """Softmax attention in O(T + S) memory; arguments and result as `reference.attention`.

    Args:
      block_size: largest number of queries, and of keys, in one block, >= 1.

    Raises:
      ValueError: shapes or head counts disagree, or ``block_size`` < 1.
    """
    visibility = resolve(q, k, v, causal=causal, segment_ids=segment_ids, visibility=visibility)
    scale = q.shape[3] ** -0.5 if scale is None else scale
    return attention_and_logsumexp(q, k, v, visibility, scale=scale, cap=cap, block_size=block_size)[0]


def attention_and_logsumexp(
    q: Float[Array, "B T Hq D"],
    k: Float[Array, "B S Hk D"],
    v: Float[Array, "B S Hk V"],
    visibility: Visibility,
    *,
    scale: float,
    cap: float | None = None,
    block_size: int = BLOCK,
    bias: tuple[Float[Array, "B T Hq P"], Float[Array, "B S Hq P"]] | None = None,
) -> tuple[Float[Array, "B T Hq V"], Float[Array, "B T Hq"]]:
    """The attention over some of a softmax's keys and the log of its sum, for whoever adds the other keys.

    Rows that see nothing have output 0 and log-sum `reference.EMPTY`. ``bias``: of queries and of keys; their
    difference is added to the scaled and capped logits, term by term: large terms cancel before small ones are added.
    """
    if block_size < 1:
        raise ValueError(f"block_size: expected >= 1, got {block_size}")
    q = zero_padding(q, visibility.run_q)
    k, v = shield(k, v, visibility.run_k)
    o, logsumexp = _flash(float(scale), cap, block_size, q, k, v, bias, visibility)
    real = (visibility.run_q > 0)[:, :, None]  # here, so that no NaN gradient of padding comes in
    return jnp.where(real[..., None], o, 0), jnp.where(real, logsumexp, EMPTY)


@partial(jax.custom_vjp, nondiff_argnums=(0, 1, 2))
def _flash(scale: float, cap: float | None, block_size: int, q: Array, k: Array, v: Array, bias, visibility):
    return forward_blocks(scale, cap, block_size, q, k, v, bias, visibility, _aligned(q, k, visibility))


def _flash_fwd(scale, cap, block_size, q, k, v, bias, visibility):
    o, logsumexp = _flash(scale, cap, block_size, q, k, v, bias, visibility)
    return (o, logsumexp), (q, k, v, bias, visibility, o, logsumexp)


def _flash_bwd(scale, cap, block_size, residuals, gradients):
    q, k, visibility = residuals[0], residuals[1], residuals[4]
    return backward_blocks(scale, cap, block_size, residuals, gradients, _aligned(q, k, visibility))


def _aligned(q: Array, k: Array, visibility: Visibility) -> bool:
    return visibility.causal and q.shape[1] == k.shape[1]


def _expected(blocks: int, size: int, visibility: Visibility, aligned: bool) -> float:
    """Of M blocks, those that a block of a whole row sees, or is seen by: (M + 1) / 2 in the mean over causal rows."""
    if visibility.window is not None:
        return min(blocks, 1 - (-visibility.window // size))
    return (blocks + 1) / 2 if aligned else blocks


def forward_blocks(
    scale: float,
    cap: float | None,
    block_size: int,
    q: Array,
    k: Array,
    v: Array,
    bias,
    visibility: Visibility,
    aligned: bool = False,
):
    """Output and log-sum of `attention_and_logsumexp`, of inputs whose padding is 0.

    ``aligned``: queries and keys are of the same causal tokens, half of whose blocks are to be reckoned with.
    """
    time, kv_heads = q.shape[1], k.shape[2]
    size_q, size_k = _block(time, block_size), _block(k.shape[1], block_size)
    edges_q, edges_k = _edges(visibility, size_q, size_k)
    kb, vb = (_blocks(x, size_k, kv_heads)[:, :, :, 0] for x in (k, v))
    run_k, at_k = (_blocks(x, size_k) for x in (visibility.run_k, visibility.position_k))
    bias_q, bias_k = _bias(bias, size_q, size_k, kv_heads)
    sums = accumulator(q)

    def row(_, block):
        q_n, bias_n, run_n, at_n, edges_n = block
        # One block's span at a time: all of them at once are a table of N x M.
        first_n, count_n = _span(_may_see([x[:, None] for x in edges_n], edges_k, visibility))

        def step(i, carry):
            peak, total, acc = carry
            at, active = _turn(i, first_n[:, 0], count_n[:, 0])
            k_m, v_m, run_m, at_m = (_pick(x, at) for x in (kb, vb, run_k, at_k))
            seen = _seen(visibility, run_n, at_n, run_m, at_m, active)
            logits = _biased(capped(_logits(q_n, k_m, scale), cap), bias_n, [_pick(x, at) for x in bias_k])
            logits = jnp.where(seen, logits, MASKED)
            higher = jnp.maximum(peak, logits.max(axis=-1))
            weights = jnp.exp(logits - higher[..., None])
            fade = jnp.exp(peak - higher)
            acc = acc * fade[..., None] + dot("bkgcs,bksv->bkgcv", weights.astype(v.dtype), v_m)
            return higher, total * fade + weights.sum(axis=-1), acc

        shape = q_n.shape[:-1]
        zeros = partial(jnp.zeros_like, q_n, dtype=sums)  # of q_n: on shards they differ from device to device
        start = (zeros(shape=shape) + EMPTY, zeros(shape=shape), zeros(shape=(*shape, v.shape[3])))
        expected = _expected(kb.shape[1], size_k, visibility, aligned)
        peak, total, acc = data_loop(count_n.max(), step, start, expected=expected)
        total = jnp.where(total > 0, total, 1)
        return None, ((acc / total[..., None]).astype(q.dtype), peak + jnp.log(total))

    run_q, at_q = (_blocks(x, size_q) for x in (visibility.run_q, visibility.position_q))
    blocks = (_blocks(q, size_q, kv_heads), bias_q, run_q, at_q, edges_q)
    _, (o, logsumexp) = jax.lax.scan(row, None, jax.tree.map(lambda x: jnp.moveaxis(x, 1, 0), blocks))
    return _unblock(jnp.moveaxis(o, 0, 1), time), _unblock(jnp.moveaxis(logsumexp, 0, 1)[..., None], time)[..., 0]


def backward_blocks(scale, cap, block_size, residuals, gradients, aligned: bool = False):
    """Gradients of the inputs. The keys may be some of those that ``o`` and its log-sum are of."""
    q, k, v, bias, visibility, o, logsumexp = residuals
    do, dlogsumexp = gradients
    time, kv_heads = q.shape[1], k.shape[2]
    size_q, size_k = _block(time, block_size), _block(k.shape[1], block_size)
    edges_q, edges_k = _edges(visibility, size_q, size_k)
    sums = accumulator(q)
    # d logits = p * (do . v - do . o + d logsumexp)
    shift = dlogsumexp.astype(sums) - (do.astype(sums) * o.astype(sums)).sum(axis=-1)
    qb, dob = (_blocks(x, size_q, kv_heads) for x in (q, do))
    lb, sb = (_blocks(x[..., None], size_q, kv_heads)[..., 0] for x in (logsumexp, shift))
    run_q, at_q = (_blocks(x, size_q) for x in (visibility.run_q, visibility.position_q))
    bias_q, bias_k = _bias(bias, size_q, size_k, kv_heads)

    def column(dq, block):
        k_m, v_m, bias_m, run_m, at_m, edges_m = block
        may = _may_see(edges_q, [x[:, None] for x in edges_m], visibility)
        first_m, count_m = _span(may.swapaxes(1, 2))

        def step(i, carry):
            dq, dk, dv, dbias = carry
            at, active = _turn(i, first_m[:, 0], count_m[:, 0])
            q_n, do_n, l_n, s_n, run_n, at_n = (_pick(x, at) for x in (qb, dob, lb, sb, run_q, at_q))
            seen = _seen(visibility, run_n, at_n, run_m, at_m, active)
            scores = capped(_logits(q_n, k_m, scale), cap)
            logits = jnp.where(seen, _biased(scores, [_pick(x, at) for x in bias_q], bias_m), MASKED)
            weights = jnp.exp(logits - l_n[..., None])
            dv = dv + dot("bkgcs,bkgcv->bksv", weights.astype(v.dtype), do_n)
            dlogits = weights * (dot("bkgcv,bksv->bkgcs", do_n, v_m) + s_n[..., None])
            dlogits = jnp.where(seen, dlogits, 0)  # 0 * inf of a hidden value stays out
            dbias = [x - dlogits.sum(axis=3) for x in dbias]
            if cap is not None:
                slope = 1 - jnp.square(scores / cap)
                dlogits = jnp.where(seen, dlogits * slope, 0)  # nor does a hidden key that is not finite come in
            dlogits = (dlogits * scale).astype(q.dtype)
            dk = dk + dot("bkgcs,bkgcd->bksd", dlogits, q_n)
            return _add(dq, at, dot("bkgcs,bksd->bkgcd", dlogits, k_m)), dk, dv, dbias

        dbias = [jnp.zeros_like(x, dtype=sums) for x in bias_m[:1]]  # the same for every term
        start = (dq, jnp.zeros_like(k_m, dtype=sums), jnp.zeros_like(v_m, dtype=sums), dbias)
        expected = _expected(qb.shape[1], size_q, visibility, aligned)
        dq, dk, dv, dbias = data_loop(count_m.max(), step, start, expected=expected)
        return dq, (dk.astype(k.dtype), dv.astype(v.dtype), dbias)

    kb, vb = (_blocks(x, size_k, kv_heads)[:, :, :, 0] for x in (k, v))
    blocks = (kb, vb, bias_k, *(_blocks(x, size_k) for x in (visibility.run_k, visibility.position_k)), edges_k)
    xs = jax.tree.map(lambda x: jnp.moveaxis(x, 1, 0), blocks)
    dq, (dk, dv, dbias) = jax.lax.scan(column, jnp.zeros_like(qb, dtype=sums), xs)
    dk, dv = (_unblock(jnp.moveaxis(x, 0, 1)[:, :, :, None], k.shape[1]) for x in (dk, dv))
    if bias is not None:  # a softmax does not move with its query's bias: only the log of its sum does
        of_q = jnp.where(logsumexp > EMPTY, dlogsumexp.astype(sums), 0)
        of_k = _unblock(jnp.moveaxis(dbias[0], 0, 1)[..., None], k.shape[1])[..., 0]
        bias = jax.tree.map(lambda x, g: jnp.broadcast_to(g[..., None], x.shape).astype(x.dtype), bias, (of_q, of_k))
    return _unblock(dq, time).astype(q.dtype), dk, dv, bias, None


_flash.defvjp(_flash_fwd, _flash_bwd)


def _bias(bias, size_q: int, size_k: int, kv_heads: int) -> tuple[list[Array], list[Array]]:
    """The terms of a bias in blocks of queries and of keys; none without one."""
    if bias is None:
        return [], []
    q, k = (_blocks(x, size, kv_heads) for x, size in zip(bias, (size_q, size_k), strict=True))
    return [q[..., p] for p in range(q.shape[5])], [k[..., p] for p in range(k.shape[5])]


def _logits(q: Array, k: Array, scale: float) -> Float[Array, "B Hk G C S"]:
    return dot("bkgcd,bksd->bkgcs", q, k) * scale


def _biased(logits: Array, bias_q: list[Array], bias_k: list[Array]) -> Float[Array, "B Hk G C S"]:
    return sum([of_q[..., :, None] - of_k[..., None, :] for of_q, of_k in zip(bias_q, bias_k, strict=True)], logits)


def _block(time: int, largest: int) -> int:
    """Length of the blocks of a row: as few as possible, and as even as possible."""
    return -(-time // -(-time // largest)) if time else 1


def _blocks(x: Array, size: int, kv_heads: int | None = None) -> Array:
    """``[B,T]`` -> ``[B,N,C]`` and ``[B,T,H,D]`` -> ``[B,N,Hk,G,C,D]``, zero-padded: a block's heads are matrices."""
    batch, time = x.shape[:2]
    x = jnp.pad(x, ((0, 0), (0, -time % size)) + ((0, 0),) * (x.ndim - 2))
    if kv_heads is None:
        return x.reshape(batch, -1, size)
    return x.reshape(batch, -1, size, kv_heads, x.shape[2] // kv_heads, x.shape[3]).transpose(0, 1, 3, 4, 2, 5)


def _unblock(x: Array, time: int) -> Array:
    """The inverse of `_blocks` for ``[B,N,Hk,G,C,D]``."""
    batch, blocks, kv_heads, group, size, width = x.shape
    x = x.transpose(0, 1, 4, 2, 3, 5).reshape(batch, blocks * size, kv_heads * group, width)
    return x[:, :time]


def _edges(visibility: Visibility, size_q: int, size_k: int):
    """For the blocks of queries and of keys: their first run and its least position, their last and its greatest."""

    def edges(run, position):
        far = jnp.iinfo(jnp.int32).max
        first = jnp.where(run > 0, run, far).min(axis=-1)
        last = run.max(axis=-1)
        least = jnp.where(run == first[..., None], position, far).min(axis=-1)
        return first, least, last, jnp.where(run == last[..., None], position, -1).max(axis=-1)

    return (
        edges(_blocks(visibility.run_q, size_q), _blocks(visibility.position_q, size_q)),
        edges(_blocks(visibility.run_k, size_k), _blocks(visibility.position_k, size_k)),
    )


def _may_see(queries, keys, visibility: Visibility) -> Bool[Array, "B N M"]:
    """False only where no query of block n can see a key of block m."""
    first_q, least_q, last_q, most_q = (x[:, :, None] for x in queries)
    first_k, least_k, last_k, most_k = (x[:, None, :] for x in keys)
    may = (first_q <= last_k) & (first_k <= last_q)
    if visibility.causal:
        may &= (first_k < last_q) | (least_k <= most_q)
    if visibility.window is not None:
        may &= (last_k > first_q) | (most_k > least_q - visibility.window)
    return may


def _span(may: Bool[Array, "B N M"]) -> tuple[Int[Array, "B N"], Int[Array, "B N"]]:
    """First column that is True and how many columns there are from it to the last one that is."""
    columns = jnp.arange(may.shape[2], dtype=jnp.int32)[None, None, :]
    first = jnp.where(may, columns, may.shape[2]).min(axis=2)
    last = jnp.where(may, columns, -1).max(axis=2)
    return first, jnp.maximum(last - first + 1, 0)


def _turn(i: Array, first: Int[Array, " B"], count: Int[Array, " B"]) -> tuple[Int[Array, " B"], Bool[Array, " B"]]:
    """The block that each row of the batch visits at its i-th turn, and whether it has an i-th turn."""
    return first + jnp.minimum(i, jnp.maximum(count - 1, 0)), i < count


_pick = jax.vmap(lambda row, i: jax.lax.dynamic_index_in_dim(row, i, keepdims=False))  # [B, N, ...], [B] -> [B, ...]
_add = jax.vmap(lambda row, i, update: row.at[i].add(update))


def _seen(visibility: Visibility, run_q, at_q, run_k, at_k, active) -> Bool[Array, "B 1 1 C S"]:
    here = Visibility(run_q, at_q, run_k, at_k, causal=visibility.causal, window=visibility.window)
    return (here.pairs() & active[:, None, None])[:, None, None]
