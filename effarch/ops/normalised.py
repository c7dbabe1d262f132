"""Linear attention with a denominator: weights ``phi(q_t).phi(k_s)`` that sum to one.

    o_t = sum_{s <= t} w_ts v_s / sum_{s <= t} w_ts

The denominator is a column of ones appended to v. Keys whose features carry a log-scale c are weighed by
``exp(c_s - m_t)`` with the running maximum ``m_t = max(m_{t-1}, c_t)`` of their document: the state is held as
``exp(-m_t) S_t``, decays by ``exp(m_{t-1} - m_t)``, and the maximum cancels in the quotient (as in mLSTM).
"""

import jax
import jax.numpy as jnp

from effarch.ops.features import Features
from effarch.ops.precision import accumulator
from effarch.ops.recurrence import Constant, Scalar, linear_recurrence
from effarch.ops.segments import Segments, as_segments
from effarch.typing import Array, Bool, Float, Int, PyTree

NOTHING = -1e30  # a running maximum over nothing: finite, since -inf - -inf is NaN


def running_maximum(
    x: Float[Array, "B T H"],
    *,
    state: Float[Array, "B H"] | None = None,
    segment_ids: Int[Array, "B T"] | Segments | None = None,
) -> tuple[Float[Array, "B T H"], Float[Array, "B T H"]]:
    """The largest x of the document so far, without and with the token's own: ``(m_{t-1}, m_t)``.

    Args:
      x: finite, except at padding. state: the maximum before the first token; NOTHING if None. It belongs to run 1.
      segment_ids: documents; 0 is padding and the identity.

    Returns:
      Two arrays; the first is NOTHING at a document's first token. Neither has a gradient.
    """
    segments = as_segments(segment_ids)
    batch, time, heads = x.shape
    x = jax.lax.stop_gradient(x)
    first = jnp.full((batch, heads), NOTHING, x.dtype) if state is None else state.astype(x.dtype)
    new = jnp.zeros((batch, time, 1), bool)
    if segments is not None:
        x = jnp.where(segments.real[..., None], x, jnp.asarray(NOTHING, x.dtype))
        new = (segments.real & (segments.run != segments.carried_run))[..., None]

    def later(left: tuple[Bool[Array, "..."], Array], right: tuple[Bool[Array, "..."], Array]) -> tuple[Array, Array]:
        return left[0] | right[0], jnp.where(right[0], right[1], jnp.maximum(left[1], right[1]))

    fresh, after = jax.lax.associative_scan(later, (new, x), axis=1)
    after = jnp.where(fresh, after, jnp.maximum(after, first[:, None]))
    before = jnp.concatenate([first[:, None], after[:, :-1]], axis=1)
    return jnp.where(new, jnp.asarray(NOTHING, x.dtype), before), after


def quotient(numerator: Float[Array, "... V"], denominator: Float[Array, "... 1"]) -> Float[Array, "... V"]:
    """``numerator / denominator`` where the denominator, a sum of weights, is positive; 0 where all weights vanish.

    Below ``tiny^(3/4)`` (4e-29 in float32) a sum counts as 0, since gradients would overflow. NaN stays NaN.
    """
    empty = denominator <= jnp.finfo(denominator.dtype).tiny ** 0.75
    denominator = jnp.where(empty, jnp.ones_like(denominator), denominator)
    # In two steps: the derivative of a quotient squares the denominator, which underflows at its root.
    scale = jax.lax.stop_gradient(1 / denominator)
    return jnp.where(empty, jnp.zeros_like(numerator), (numerator * scale) / (denominator * scale))


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
      q, k: features ``[B, T, Hq, F]`` and ``[B, T, Hk, F]``; Hq and Hk divide H. A scale of q cancels.
      v: values.
      state: as :func:`initial_state`; None: nothing seen.
      segment_ids: documents; 0 is padding and the identity, its output is 0.
      form: of the recurrence.

    Returns:
      Outputs in v's dtype, and the next state: ``[B, H, F, V + 1]``, or that and the maximum ``[B, Hk]``.
    """
    segments, heads = as_segments(segment_ids), v.shape[2]
    narrow = jnp.float16  # a sum of weights soon leaves its range
    values = jnp.concatenate([v, jnp.ones_like(v[..., :1])], axis=-1)
    values = values.astype(jnp.float32) if v.dtype == narrow else values
    keys, maximum = k.values, None
    transition: Constant | Scalar = Constant(jnp.zeros((heads,), jnp.float32))
    if k.log_scale is not None:
        state, maximum = (None, None) if state is None else state
        before, after = running_maximum(k.log_scale, state=maximum, segment_ids=segments)
        # A document's first token has no state to decay.
        decay = jnp.where(before <= 0.5 * NOTHING, jnp.zeros_like(after), before - after)
        transition = Scalar(jnp.repeat(decay, heads // decay.shape[2], axis=2))
        weight = jnp.exp(jnp.minimum(k.log_scale - after, 0))[..., None]  # above 0 at padding only
        keys = (keys.astype(accumulator(weight)) * weight).astype(keys.dtype)
        maximum = after[:, -1]
    o, state = linear_recurrence(
        q.values, keys, values, transition=transition, state=state, segment_ids=segments, form=form
    )
    wide = o.astype(accumulator(o))
    o = quotient(wide[..., :-1], wide[..., -1:]).astype(v.dtype)
    return o, state if maximum is None else (state, maximum)


def initial_state(batch: int, heads: int, key_heads: int, features: int, width: int, *, log_scaled: bool) -> PyTree:
    """The state of :func:`normalised_attention` before any token, float32.

    Args:
      batch, heads, key_heads: B, H, Hk. features, width: F, V. log_scaled: whether keys carry a log-scale.
    """
    s = jnp.zeros((batch, heads, features, width + 1), jnp.float32)
    return (s, jnp.full((batch, key_heads), NOTHING, jnp.float32)) if log_scaled else s
