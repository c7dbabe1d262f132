"""Exponential input gates that cannot overflow: the running maximum of mLSTM (2405.04517).

    S_t = e^(g_t) S_{t-1} + e^(i_t) k_t v_t^T        g_t <= 0 a log-decay, i_t any real number

is ``e^(m_t)`` times the state of a recurrence whose factors are at most 1:

    m_t = max(g_t + m_{t-1}, i_t)        S'_t = e^(g_t + m_{t-1} - m_t) S'_{t-1} + e^(i_t - m_t) k_t v_t^T

m is a scan of its own, before the recurrence, so that every form of the recurrence is exact with it.
"""

import dataclasses
from functools import partial

import jax
import jax.numpy as jnp

from effarch.ops.precision import accumulator
from effarch.ops.segments import Segments, as_segments
from effarch.typing import Array, Float, Int

NOTHING = -1e30  #: the maximum of nothing: finite, for -inf - -inf is NaN


@partial(jax.tree_util.register_dataclass, data_fields=["log_decay", "log_input", "maximum", "state"], meta_fields=[])
@dataclasses.dataclass(frozen=True)
class Stabilised:
    """Gates of the stabilised recurrence, in promote(float32, gates).

    Attributes:
      log_decay: ``[B, T, H]`` g_t + m_{t-1} - m_t, <= 0.
      log_input: ``[B, T, H]`` i_t - m_t, <= 0; 0 at padding.
      maximum: ``[B, T, H]`` m_t: the log of what the stabilised state is to be multiplied with.
      state: ``[B, H]`` m after the last token.
    """

    log_decay: Float[Array, "B T H"]
    log_input: Float[Array, "B T H"]
    maximum: Float[Array, "B T H"]
    state: Float[Array, "B H"]


def _later(first: tuple[Array, Array], second: tuple[Array, Array]) -> tuple[Array, Array]:
    """``m -> max(a + m, b)``, the second after the first."""
    (a1, b1), (a2, b2) = first, second
    return a1 + a2, jnp.maximum(b1 + a2, b2)


def stabilise(
    log_decay: Float[Array, "B T H"],
    log_input: Float[Array, "B T H"],
    *,
    state: Float[Array, "B H"] | None = None,
    start: float = 0.0,
    segment_ids: Int[Array, "B T"] | Segments | None = None,
) -> Stabilised:
    """The running maximum m, and the gates divided by it.

    In gradients m is a constant of ``log_decay`` and ``log_input``: what is computed with them and scaled back by
    ``e^m`` does not depend on it. Where something does, ``maximum`` itself has its gradient.

    Args:
      log_decay: g, natural log, <= 0. log_input: i, natural log of the input gate.
      state: m before the first token; ``start`` if None. It belongs to run 1; other documents begin with ``start``.
      start: m of a document before its first token. 0 if something is compared with ``e^-m`` (mLSTM's floor), NOTHING
        if m cancels: then no input is too small.
      segment_ids: documents; 0 is padding and the identity.
    """
    segments = as_segments(segment_ids)
    dtype = accumulator(log_decay, log_input)
    g, i = log_decay.astype(dtype), log_input.astype(dtype)
    before = jnp.full_like(g[:, 0], start) if state is None else state.astype(dtype)
    a, b = g, i
    if segments is not None:
        real = segments.real[..., None]
        new = real & (segments.run != segments.carried_run)[..., None]
        g, i = jnp.where(real, g, 0), jnp.where(real, i, -jnp.inf)
        a, b = jnp.where(new, -jnp.inf, g), jnp.where(new, jnp.maximum(g + start, i), i)  # new: m -> max(g + start, i)
    a, b = jax.lax.associative_scan(_later, (a, b), axis=1)
    maximum = jnp.maximum(a + before[:, None], b)

    m = jax.lax.stop_gradient(maximum)
    previous = jnp.concatenate([before[:, None], m[:, :-1]], axis=1)
    if segments is not None:
        previous = jnp.where(new, start, previous)
    shift = jnp.minimum(jax.lax.stop_gradient(previous) - m, -jax.lax.stop_gradient(g))  # rounding: never above 0
    log_input = i - m if segments is None else jnp.where(real, i - m, 0)
    return Stabilised(g + shift, log_input, maximum, maximum[:, -1])
