"""The definition, one token at a time, with A_t written out as a matrix: what every form and kernel is tested against.

Slow, simple, and in the precision of its inputs (float64 in the tests).
"""

import jax
import jax.numpy as jnp

from effarch.ops.recurrence.transitions import Constant, Delta, Diagonal, DiagonalPlusRankOne, Scalar, Transition
from effarch.ops.segments import Segments, as_segments
from effarch.typing import Array, Float, Int


def _heads(x: Array, heads: int) -> Array:
    return jnp.repeat(x, heads // x.shape[2], axis=2)


def matrices(transition: Transition, k: Array, heads: int) -> tuple[Array, Array]:
    """``A [B, T, H, K, K]`` and the vectors ``[B, T, H, K]`` that v is written along."""
    batch, time, _, width = k.shape
    eye = jnp.eye(width, dtype=k.dtype)[None, None, None]
    full = (batch, time, heads, width)
    k = _heads(k, heads)
    match transition:
        case Constant(log_decay):
            return jnp.broadcast_to(jnp.exp(log_decay)[None, None, :, None, None] * eye, (*full, width)), k
        case Scalar(log_decay):
            return jnp.exp(log_decay)[..., None, None] * eye, k
        case Diagonal(log_decay):
            return jnp.exp(_heads(log_decay, heads))[..., None] * eye, k
        case Delta(beta, log_decay):
            if log_decay is None:
                decay = jnp.ones(full, k.dtype)
            elif log_decay.ndim == 3:
                decay = jnp.broadcast_to(jnp.exp(log_decay)[..., None], full)
            else:
                decay = jnp.exp(_heads(log_decay, heads))
            write = beta[..., None] * k
            return (eye - write[..., :, None] * k[..., None, :]) * decay[..., None, :], write
        case DiagonalPlusRankOne(log_decay, p, r):
            diagonal = jnp.exp(_heads(log_decay, heads))[..., None] * eye
            return diagonal + _heads(p, heads)[..., :, None] * _heads(r, heads)[..., None, :], k


def oracle(
    q: Float[Array, "B T Hq K"],
    k: Float[Array, "B T Hk K"],
    v: Float[Array, "B T H V"],
    *,
    transition: Transition,
    read: str = "after",
    state: Float[Array, "B H K V"] | None = None,
    segment_ids: Int[Array, "B T"] | Segments | None = None,
) -> tuple[Float[Array, "B T H V"], Float[Array, "B H K V"]]:
    """``S_t = A_t S_{t-1} + k_t v_t^T``, ``o_t = S_t^T q_t``, as a scan over time; see ``linear_recurrence``."""
    batch, time, heads, _ = v.shape
    q = _heads(q, heads)
    a, write = matrices(transition, k, heads)
    if state is None:
        state = jnp.zeros((batch, heads, k.shape[-1], v.shape[-1]), v.dtype)
    segments = as_segments(segment_ids)
    run = jnp.ones((batch, time), jnp.int32) if segments is None else segments.run

    def step(carry, token):
        s, current = carry
        q_t, k_t, v_t, a_t, run_t = token
        real = (run_t > 0)[:, None, None, None]
        s = jnp.where((real[:, 0, 0, 0] & (run_t != current))[:, None, None, None], jnp.zeros_like(s), s)
        after = jnp.einsum("bhij,bhjv->bhiv", a_t, s, precision="highest") + k_t[..., :, None] * v_t[..., None, :]
        after = jnp.where(real, after, s)
        seen = after if read == "after" else s
        o_t = jnp.where(real[..., 0], jnp.einsum("bhkv,bhk->bhv", seen, q_t, precision="highest"), jnp.zeros_like(v_t))
        return (after, jnp.where(run_t > 0, run_t, current)), o_t

    by_time = [jnp.moveaxis(x, 1, 0) for x in (q, write, v, a, run)]
    (state, _), o = jax.lax.scan(step, (state, jnp.ones((batch,), jnp.int32)), tuple(by_time))
    return jnp.moveaxis(o, 0, 1), state
