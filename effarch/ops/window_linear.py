"""Softmax attention to a window and linear attention to everything before it, in one normalised sum (LoLCATs).

    o_t = (sum_{s near t} e^{q_t.k_s / sqrt(K)} v_s + e^c sum_{s far} phi(q_t).phi(k_s) v_s) / (the same without v)

near: the last ``window`` positions and the document's first ``sinks``; far: all others before t, each token in one of
the two. A key enters the state of the linear part when it leaves the window, so decoding carries the window's ring and
that state. Where ``phi(q).phi(k)`` is ``e^{q.k / sqrt(K) - c}`` this is softmax attention.

LoLCATs (2410.10254) divides a row's window terms by their largest; here they stay as they are, so that the two kinds of
terms keep one scale whatever the window holds, and the logarithms of both sums are what is added.
"""

from collections.abc import Callable

import jax.numpy as jnp

from effarch.ops.attention.cache import RingCache, append
from effarch.ops.attention.reference import merge, row_segments, zero_padding
from effarch.ops.attention.window import window_and_logsumexp
from effarch.ops.conv import delay
from effarch.ops.features import Features
from effarch.ops.mixing import mixes
from effarch.ops.normalised import attention_and_logsum
from effarch.ops.segments import Segments
from effarch.ops.stabiliser import NOTHING
from effarch.typing import Array, Float, Int, PyTree

State = tuple[RingCache, PyTree]
Map = Callable[[Float[Array, "B T H K"], Int[Array, "B T"]], Features]


@mixes(weights=True)
def window_linear_attention(
    q: Float[Array, "B T Hq K"],
    k: Float[Array, "B T Hk K"],
    v: Float[Array, "B T Hk V"],
    *,
    phi_q: Map,
    phi_k: Map,
    log_share: Float[Array, " Hq"],
    window: int,
    sinks: int,
    q_sink: Float[Array, "B T Hq K"],
    cap: float | None = None,
    positions: Int[Array, "B T"],
    state: State | None = None,
    segments: Segments | None = None,
    form: str = "chunkwise",
) -> tuple[Float[Array, "B T Hq V"], State | None]:
    """See the file.

    Args:
      q, k, v: queries, keys and values, rotated at their own positions; Hk divides Hq.
      phi_q, phi_k: feature maps of queries and keys, given their positions too; no weight may be negative.
      log_share: c, natural log of what the linear terms are multiplied by.
      window, sinks: as :func:`effarch.ops.attention.window_attention`, ``q_sink`` and ``cap`` too; the cap is on the
        window's logits.
      positions: ``[B or 1, T]`` of each token in its document.
      state: the ring, and the state of the linear part; None: nothing seen, and nothing is carried.
      segments: documents; 0 is padding and the identity.
      form: "parallel", "chunkwise" or "recurrent".
    """
    batch, time, heads, _ = q.shape
    ring, sums = (None, None) if state is None else state
    dense = form == "parallel" or (ring is not None and time == 1)  # one token's scores are few
    near = window_and_logsumexp(
        q,
        k,
        v,
        window=window,
        sinks=sinks,
        segment_ids=segments,
        q_sink=q_sink,
        cap=cap,
        left=None if ring is None else ring.left,
        form="parallel" if dense else "chunkwise",
    )
    left_k, left_v = _leaving(k, v, window, ring, segments)
    left = (positions >= window + sinks)[..., None, None]  # the token that leaves is none of the sinks
    if segments is not None:
        left = left & segments.real[..., None, None]
    keys = phi_k(jnp.where(left, left_k, jnp.zeros((), k.dtype)), jnp.maximum(positions - window, 0))
    values = jnp.where(left, keys.values, jnp.zeros((), keys.values.dtype))
    scale = None if keys.log_scale is None else jnp.where(left[..., 0], keys.log_scale, NOTHING)
    left_v = jnp.repeat(jnp.where(left, left_v, jnp.zeros((), v.dtype)), heads // v.shape[2], axis=2)
    o, logsum, sums = attention_and_logsum(
        phi_q(q, positions), Features(values, scale), left_v, state=sums, segment_ids=segments, form=form
    )
    o = merge([near, (o, logsum + log_share.astype(logsum.dtype)[None, None])])
    o = zero_padding(o, row_segments(segments, batch, time).run)
    return o, None if ring is None else (append(ring, k, v, segments), sums)


def _leaving(
    k: Array, v: Array, window: int, ring: RingCache | None, segments: Segments | None
) -> tuple[Float[Array, "B T Hk K"], Float[Array, "B T Hk V"]]:
    """Key and value that leave the window as each token enters it; anything where none does."""
    shapes = k.shape, v.shape
    line = jnp.concatenate([k.reshape(*k.shape[:2], -1), v.reshape(*v.shape[:2], -1)], axis=-1)
    held = None
    if ring is not None:
        oldest = (ring.length[:, None] + jnp.arange(window, dtype=jnp.int32)[None]) % window  # slot of each, in order
        parts = (x.reshape(*x.shape[:2], -1) for x in (ring.k, ring.v))
        held = jnp.take_along_axis(jnp.concatenate(tuple(parts), axis=-1), oldest[..., None], axis=1)
    line = delay(line, window, state=held, segment_ids=segments)
    left_k, left_v = jnp.split(line, [shapes[0][2] * shapes[0][3]], axis=-1)
    return left_k.reshape(shapes[0]), left_v.reshape(shapes[1])
