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

from effarch import axes
from effarch.ops.context import Start, split_over_devices
from effarch.ops.precision import accumulator
from effarch.ops.segments import Segments, as_segments
from effarch.typing import Array, Bool, Float, Int

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
    where = () if segments is None else (segments.run, segments.carried_run)
    run, split = partial(_run, start=start), axes.context_parallel(g.shape[1])
    if split is None:
        gates, end = run((g, i, *where), before)
    else:
        mesh, axis = split
        where = where or (jnp.ones(g.shape[:2], jnp.int32),) * 2
        span = partial(_span, start=start)
        gates, end = split_over_devices((g, i, *where), before, run=run, span=span, apply=_apply, mesh=mesh, axis=axis)
    return Stabilised(*gates, end)


def _since_start(tokens: tuple[Array, ...], start: float) -> tuple[Array, Array]:
    """``(a, b)`` from the first token to each, so that ``m = max(a + m, b)``."""
    a, b, *where = tokens
    if where:
        real, new = _real_and_new(*where)
        g, i = jnp.where(real, a, 0), jnp.where(real, b, -jnp.inf)
        a, b = jnp.where(new, -jnp.inf, g), jnp.where(new, jnp.maximum(g + start, i), i)  # new: m -> max(g + start, i)
    return jax.lax.associative_scan(_later, (a, b), axis=1)


def _real_and_new(run: Array, carried: Array) -> tuple[Bool[Array, "B T 1"], Bool[Array, "B T 1"]]:
    return (run > 0)[..., None], ((run > 0) & (run != carried))[..., None]


def _run(tokens: tuple[Array, ...], before: Array, *, start: float) -> tuple[tuple[Array, Array, Array], Array]:
    """Log-decays, log-inputs and maxima of these tokens, and the last maximum."""
    g, i, *where = tokens
    a, b = _since_start(tokens, start)
    maximum = jnp.maximum(a + before[:, None], b)
    m = jax.lax.stop_gradient(maximum)
    previous = jnp.concatenate([before[:, None], m[:, :-1]], axis=1)
    log_input = i - m
    if where:
        real, new = _real_and_new(*where)
        g, log_input = jnp.where(real, g, 0), jnp.where(real, jnp.where(real, i, 0) - m, 0)
        previous = jnp.where(new, start, previous)
    shift = jnp.minimum(jax.lax.stop_gradient(previous) - m, -jax.lax.stop_gradient(g))  # rounding: never above 0
    return (g + shift, log_input, maximum), maximum[:, -1]


def _span(tokens: tuple[Array, ...], ready: Start, *, start: float) -> tuple[Array, Array]:
    """``(a, b)`` of all these tokens."""
    a, b = _since_start(tokens, start)
    return a[:, -1], b[:, -1]


def _apply(span: tuple[Array, Array], m: Array) -> Array:
    return jnp.maximum(span[0] + m, span[1])
