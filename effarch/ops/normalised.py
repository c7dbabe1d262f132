"""Linear attention with a denominator: weights ``phi(q_t).phi(k_s)`` that sum to one.

    o_t = sum_{s <= t} w_ts v_s / sum_{s <= t} w_ts

The denominator is a column of ones appended to v. Keys whose features carry a log-scale c are weighed by
``exp(c_s - m_t)`` with the running maximum ``m_t = max(m_{t-1}, c_t)`` of their document: the state is held as
``exp(-m_t) S_t``, decays by ``exp(m_{t-1} - m_t)``, and the maximum cancels in the quotient (``ops.stabiliser``).
"""

import jax
import jax.numpy as jnp

from effarch.ops.features import Features
from effarch.ops.mixing import mixes
from effarch.ops.precision import accumulator
from effarch.ops.recurrence import Constant, Scalar, linear_recurrence
from effarch.ops.segments import Segments, as_segments
from effarch.ops.stabiliser import NOTHING, stabilise
from effarch.typing import Array, Float, Int, PyTree


def quotient(numerator: Float[Array, "... V"], denominator: Float[Array, "... 1"]) -> Float[Array, "... V"]:
    """``numerator / denominator`` where the denominator, a sum of weights, is positive; 0 where all weights vanish.

    Below ``tiny^(3/4)`` (4e-29 in float32) a sum counts as 0, since gradients would overflow. NaN stays NaN.
    """
    empty = denominator <= jnp.finfo(denominator.dtype).tiny ** 0.75
    denominator = jnp.where(empty, jnp.ones_like(denominator), denominator)
    # In two steps: the derivative of a quotient squares the denominator, which underflows at its root.
    scale = jax.lax.stop_gradient(1 / denominator)
    return jnp.where(empty, jnp.zeros_like(numerator), (numerator * scale) / (denominator * scale))


@mixes(weights=True)
def normalised_attention(
    q: Features,
    k: Features,
    v: Float[Array, "B T H V"],
    *,
    state: PyTree | None = None,
    segment_ids: Int[Array, "B T"] | Segments | None = None,
    form: str = "chunkwise",
) -> tuple[Float[Array, "B T H V"], PyTree]:
    """See the file. Weights must not be negative.

    Args:
      q, k: features ``[B, T, Hq, F]`` and ``[B, T, Hk, F]``, of v's dtype or its accumulator's; Hq and Hk divide H. A
        scale of q cancels.
      v: values.
      state: as :func:`initial_state`; None: nothing seen.
      segment_ids: documents; 0 is padding and the identity, its output is 0.
      form: of the recurrence.

    Returns:
      Outputs in v's dtype, and the next state: ``[B, H, F, V + 1]``, or that and the maximum ``[B, Hk]``.
    """
    o, _, state = attention_and_logsum(q, k, v, state=state, segment_ids=segment_ids, form=form)
    return o, state


def attention_and_logsum(
    q: Features,
    k: Features,
    v: Float[Array, "B T H V"],
    *,
    state: PyTree | None = None,
    segment_ids: Int[Array, "B T"] | Segments | None = None,
    form: str = "chunkwise",
) -> tuple[Float[Array, "B T H V"], Float[Array, "B T H"], PyTree]:
    """:func:`normalised_attention`, and the log of the sum of its weights, for whoever adds other keys.

    Where all weights vanish the output is 0 and the log is NOTHING.
    """
    segments, heads = as_segments(segment_ids), v.shape[2]
    narrow = jnp.float16  # a sum of weights soon leaves its range
    values = jnp.concatenate([v, jnp.ones_like(v[..., :1])], axis=-1)
    if v.dtype == narrow or q.values.dtype.itemsize > v.dtype.itemsize:
        values = values.astype(accumulator(v))
    keys, maximum, log_scale = k.values, None, None
    transition: Constant | Scalar = Constant(jnp.zeros((heads,), jnp.float32))
    if k.log_scale is not None:
        state, maximum = (None, None) if state is None else state
        still = jnp.zeros_like(k.log_scale)
        gates = stabilise(still, k.log_scale, state=maximum, start=NOTHING, segment_ids=segments)
        transition = Scalar(jnp.repeat(gates.log_decay, heads // still.shape[2], axis=2))
        weight = jnp.exp(gates.log_input)[..., None]
        keys = (keys.astype(accumulator(weight)) * weight).astype(keys.dtype)
        maximum, log_scale = gates.state, jax.lax.stop_gradient(gates.maximum)
    o, state = linear_recurrence(
        q.values, keys, values, transition=transition, state=state, segment_ids=segments, form=form
    )
    wide = o.astype(accumulator(o))
    total = wide[..., -1]
    o = quotient(wide[..., :-1], wide[..., -1:]).astype(v.dtype)
    some = total > jnp.finfo(total.dtype).tiny ** 0.75  # as in the quotient
    logsum = jnp.log(jnp.where(some, total, jnp.ones_like(total)))
    for scale in (q.log_scale, log_scale):
        if scale is not None:
            logsum = logsum + jnp.repeat(scale, heads // scale.shape[2], axis=2).astype(logsum.dtype)
    logsum = jnp.where(some, logsum, NOTHING)
    return o, logsum, state if maximum is None else (state, maximum)


def initial_state(batch: int, heads: int, key_heads: int, features: int, width: int, *, log_scaled: bool) -> PyTree:
    """The state of :func:`normalised_attention` before any token, float32.

    Args:
      batch, heads, key_heads: B, H, Hk. features, width: F, V. log_scaled: whether keys carry a log-scale.
    """
    s = jnp.zeros((batch, heads, features, width + 1), jnp.float32)
    return (s, jnp.full((batch, key_heads), NOTHING, jnp.float32)) if log_scaled else s
