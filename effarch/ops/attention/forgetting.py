"""Forgetting attention (2503.02130): softmax attention whose logits decay with what a forget gate lets go in between.

    o_i = sum_j p_ij v_j / sum_j p_ij        p_ij = exp(scale * q_i . k_j + c_i - c_j)        c_t = sum_{s <= t} log f_s

O(T) memory: c is a bias per token of `blockwise` attention. c grows with the document while the differences that matter
stay small, so it is summed and stored in twice the precision: as two numbers, the sum and what rounding took from it.
A cache stores instead how much each key has decayed so far, which needs no difference. A row that is split over devices
goes around their ring; the sums go on from shard to shard.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from effarch import axes
from effarch.ops.attention.blockwise import attention_and_logsumexp
from effarch.ops.attention.cache import KVCache, append, destination, put, read, resume, slots
from effarch.ops.attention.reference import Visibility, mix, row_segments, shield, zero_padding
from effarch.ops.attention.ring import ring_attention
from effarch.ops.context import Start, split_over_devices
from effarch.ops.mixing import mixes
from effarch.ops.precision import accumulator
from effarch.ops.segments import Segments
from effarch.typing import Array, Float, Int

Cache = tuple[KVCache, Float[Array, "B S Hq"]]  # keys, values, and the log-decay since each key


@mixes(weights=True)
def forgetting_attention(
    q: Float[Array, "B T Hq D"],
    k: Float[Array, "B T Hk D"],
    v: Float[Array, "B T Hk V"],
    log_decay: Float[Array, "B T Hq"],
    cache: Cache | None = None,
    segments: Int[Array, "B T"] | Segments | None = None,
    *,
    form: str = "chunkwise",
    scale: float | None = None,
) -> tuple[Float[Array, "B T Hq V"], Cache | None]:
    """Causal attention of a chunk to what a cache carries and to itself, and the next cache (None without one).

    Args:
      q: queries. k: keys. v: values.
      log_decay: natural log of the forget gate of each query head, <= 0; a token's own acts on the keys before it.
      cache: `KVCache` and the log-decay since each of its keys, ``[B, S, Hq]`` in promote(float32, inputs).
      segments: documents of the row; None: one document, or all of it goes on with the cache's.
      form: "parallel" has its T x S scores in memory, others are blockwise; one token reads the cache in any form.
      scale: multiplies q . k, default ``D ** -0.5``.
    """
    scale = q.shape[3] ** -0.5 if scale is None else scale
    row = row_segments(segments, *q.shape[:2]) if cache is None else resume(cache[0], k, v, segments)
    log_decay = jnp.where(row.real[:, :, None], log_decay.astype(accumulator(q, log_decay)), 0)
    if cache is not None and q.shape[1] == 1:
        return _decode(zero_padding(q, row.run), k, v, log_decay, cache, row, scale)
    total, rest = running_sum(log_decay, jax.lax.cummax(row.run, axis=1))
    bias_q = bias_k = jnp.stack([total, rest], axis=-1)
    keys, values, run_k, position_k, after = k, v, row.run, row.position, None
    split = axes.context_parallel(q.shape[1]) if form == "chunkwise" and cache is None else None
    if split is not None:
        return ring_attention(q, k, v, row, scale=scale, bias=bias_q, mesh=split[0], axis=split[1]), None
    if cache is not None:
        held, since = cache
        after = append(held, k, v, row), _decayed(since, bias_q, row)
        slot, filled = slots(held)
        keys, values = (jnp.concatenate([a.astype(b.dtype), b], axis=1) for a, b in ((held.k, k), (held.v, v)))
        run_k, position_k = (jnp.concatenate(x, 1) for x in ((filled, row.run), (slot, row.position)))
        carried = jnp.stack([-since, jnp.zeros_like(since)], axis=-1)  # the carried document's c is 0 where it left off
        bias_k = jnp.concatenate([carried.astype(bias_q.dtype), bias_q], axis=1)
    visibility = Visibility(row.run, row.position, run_k, position_k)
    if form != "parallel":
        bias = (bias_q, bias_k)
        return attention_and_logsumexp(q, keys, values, visibility, scale=scale, bias=bias)[0], after
    bias = sum(x[..., :, None] - y[..., None, :] for x, y in zip(*map(_terms, (bias_q, bias_k)), strict=True))
    bias = bias.reshape(bias.shape[0], k.shape[2], -1, *bias.shape[2:])
    group = (zero_padding(q, row.run), *shield(keys, values, run_k), visibility.pairs())
    return zero_padding(mix([group], scale=scale, bias=bias), row.run), after


def _terms(bias: Float[Array, "B T H 2"]) -> list[Float[Array, "B H T"]]:
    return [bias[..., p].swapaxes(1, 2) for p in range(2)]


def _decode(q, k, v, log_decay, cache: Cache, row: Segments, scale: float) -> tuple[Array, Cache]:
    held, since = cache
    after = append(held, k, v, row)
    since = since + log_decay.astype(since.dtype)
    since = put(since, destination(row, since.shape[1]), jnp.zeros_like(log_decay))
    bias = since.swapaxes(1, 2).reshape(since.shape[0], k.shape[2], -1, 1, since.shape[1])
    o = read(q, after, row.real.astype(jnp.int32), row.position, scale, bias)
    return zero_padding(o, row.run), (after, since)


def _decayed(since: Array, sums: Float[Array, "B T H 2"], row: Segments) -> Array:
    """The log-decay since each key of the last run, after the row."""
    newest = (row.real.sum(axis=1, dtype=jnp.int32) - 1)[:, None]
    last = jnp.take_along_axis(row.order, jnp.maximum(newest, 0), axis=1)
    end = jnp.take_along_axis(sums, last[:, :, None, None], axis=1)
    end = jnp.where((newest >= 0)[:, :, None, None], end, 0)
    past = since + end.sum(axis=-1).astype(since.dtype)  # of another run where the carried one has ended: not read
    return put(past, destination(row, since.shape[1]), (end - sums).sum(axis=-1))


@jax.custom_vjp
def running_sum(
    x: Float[Array, "B T H"], run: Int[Array, "B T"]
) -> tuple[Float[Array, "B T H"], Float[Array, "B T H"]]:
    """``sum_{s <= t} x_s`` inside each run, as two numbers: the sum as it rounds, and what is missing.

    Gradients reach ``x`` through the first number alone, summed inside each run too.

    Args:
      x: what to add. run: of each token, equal ones side by side (padding: that of a neighbour, and x = 0).
    """
    return _running(x, run)


class _Sum(NamedTuple):
    """Of the tokens of run ``of``: their sum as it rounds, and what is missing."""

    total: Float[Array, "... H"]
    rest: Float[Array, "... H"]
    of: Int[Array, "..."]

    def before(self, later: "_Sum") -> "_Sum":
        """The sum that goes on with ``later``, if it is of the same run."""
        goes_on = (self.of == later.of)[..., None]
        more, rest = (jnp.where(goes_on, y, 0) for y in (self.total, self.rest))
        total = more + later.total
        part = total - more
        lost = (more - (total - part)) + (later.total - part)  # what rounding took from the sum (Knuth)
        rest = lost + (rest + later.rest)
        rounded = total + rest
        return _Sum(rounded, rest - (rounded - total), later.of)


def _running(x: Array, run: Array) -> tuple[Array, Array]:
    split = axes.context_parallel(x.shape[1])
    if split is None:
        return _scan((x, run))[:2]
    nothing = jnp.zeros_like(x[:, 0])
    before, (mesh, axis) = _Sum(nothing, nothing, run[:, 0]), split

    def span(tokens: tuple[Array, Array], start: Start) -> _Sum:
        return jax.tree.map(lambda y: y[:, -1], _scan(tokens))

    def shard(tokens: tuple[Array, Array], before: _Sum) -> tuple[tuple[Array, Array], _Sum]:
        sums = jax.tree.map(lambda y: y[:, None], before).before(_scan(tokens))
        return sums[:2], jax.tree.map(lambda y: y[:, -1], sums)

    def apply(later: _Sum, before: _Sum) -> _Sum:
        return before.before(later)

    return split_over_devices((x, run), before, run=shard, span=span, apply=apply, mesh=mesh, axis=axis)[0]


def _scan(tokens: tuple[Array, Array]) -> _Sum:
    x, run = tokens
    return jax.lax.associative_scan(_Sum.before, _Sum(x, jnp.zeros_like(x), run), axis=1)


def _fwd(x, run):
    return _running(x, run), run


def _bwd(run, gradients):
    return _running(gradients[0][:, ::-1], run[:, ::-1])[0][:, ::-1], None


running_sum.defvjp(_fwd, _bwd)
