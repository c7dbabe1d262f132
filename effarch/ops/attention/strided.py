"""Attention to every l-th position: O(T^2 / l) time for all of them, O(T w) for a window of w of them; O(T) memory.

    the query at position p of its run sees the positions j with j = p (mod l) and p - behind - span < j <= p - behind

The line is folded: its tokens are put in order of (place modulo l, place), so that a query's keys are its neighbours,
and `blockwise` attention runs over what is then one row of many runs, those of one document and one residue.
Places in a line and positions in a document differ by a constant in every run, so the fold needs no document to begin
at a multiple of l. This is how the Sparse Transformer (1904.10509) computes it, "by transposing the matrix".
"""

import jax.numpy as jnp

from effarch.ops.attention.blockwise import BLOCK, attention_and_logsumexp
from effarch.ops.attention.line import Line, gather
from effarch.ops.attention.reference import EMPTY, Visibility
from effarch.ops.attention.window import LEAST_BLOCK
from effarch.typing import Array, Float, Int


def strided_attention(
    q: Float[Array, "B T Hq D"], line: Line, stride: int, *, behind: int = 0, span: int | None = None, scale: float
) -> tuple[Float[Array, "B T Hq V"], Float[Array, "B T Hq"]]:
    """Attention to every ``stride``-th position, counted from the query's own, and the log of its sum.

    Args:
      q: queries of the line.
      stride: l, >= 1.
      behind: positions after p - ``behind`` are hidden; negative to look ahead.
      span: positions at and before p - ``behind`` - ``span`` are hidden too; None hides none.
      scale: multiplies the logits.

    Raises:
      ValueError: ``stride`` < 1.
    """
    if stride < 1:
        raise ValueError(f"stride: expected >= 1, got {stride}")
    length, time = line.run.shape[1], q.shape[1]
    token_k, run_k, _ = _fold(length, stride, jnp.zeros_like(line.start))
    token, run, slot = _fold(time, stride, line.start, line.place)
    token_q = gather(line.order, jnp.maximum(token, 0))  # the order of the line -> that of the row

    def take(x: Array, tokens: Array, there: Array) -> Array:
        return jnp.where(there, gather(x, jnp.maximum(tokens, 0)), 0)

    def runs(run: Array, tokens: Array, residue: Array) -> Array:
        own = take(run, tokens, tokens >= 0)
        return jnp.where(own > 0, residue * (length + 1) + own, 0)

    run_q, run_k = runs(line.run_q, jnp.where(token >= 0, token_q, -1), run), runs(line.run, token_k, run_k)
    position_q = gather(line.position_q, token_q) - behind
    position_k = gather(line.position, jnp.maximum(token_k, 0))
    visibility = Visibility(run_q, position_q, run_k, position_k, window=span)
    keys, values = (gather(x, jnp.maximum(token_k, 0)) for x in (line.k, line.v))
    seen = -(-length // stride) if span is None else min(-(-span // stride), length)
    size = max(LEAST_BLOCK, min(seen, BLOCK))
    o, logsumexp = attention_and_logsumexp(gather(q, token_q), keys, values, visibility, scale=scale, block_size=size)
    real = (line.run_q > 0)[:, :, None]
    slot = jnp.clip(slot, 0, token.shape[1] - 1)
    return jnp.where(real[..., None], gather(o, slot), 0), jnp.where(real, gather(logsumexp, slot), EMPTY)


def _fold(
    count: int, stride: int, start: Int[Array, " B"], place: Int[Array, "B T"] | None = None
) -> tuple[Int[Array, "B S"], Int[Array, "1 S"], Array]:
    """The order of (place % stride, place) of ``count`` tokens at places start, start + 1, ...

    Returns: which token each slot holds (negative: none), the residue of each slot, and the slots of ``place``.
    """
    rows = -(-count // stride) + (0 if place is None else 1)  # one more: the first place may have any residue
    residue, row = jnp.divmod(jnp.arange(rows * stride, dtype=jnp.int32), rows)
    first = (start // stride)[:, None]
    token = (first + row[None]) * stride + residue[None] - start[:, None]
    token = jnp.where((token >= 0) & (token < count), token, -1)
    slot = start if place is None else place % stride * rows + place // stride - first
    return token, residue[None], slot
