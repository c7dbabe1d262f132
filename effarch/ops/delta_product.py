"""Several delta steps per token (DeltaProduct, 2502.10297): the delta rule over the n T steps of T tokens.

    S_t = (I - b_n k_n k_n^T) ... (I - b_1 k_1 k_1^T) Diag(a_t) S_{t-1} + ...        o_t = S_t^T q_t

A token decays the state before its first step and reads it after its last. All steps of a token share its document.
"""

import contextlib

import jax.numpy as jnp

from effarch import axes
from effarch.ops.recurrence import Delta, linear_recurrence
from effarch.ops.segments import Segments, as_segments, repeat
from effarch.typing import Array, Float, Int


def _at(x: Array, step: int, steps: int) -> Array:
    """``[B, T, ...] -> [B, T n, ...]``: ``x`` at one step of each token, 0 at the others."""
    padding = [(0, 0)] * (x.ndim + 1)
    padding[2] = (step, steps - 1 - step)
    return jnp.pad(x[:, :, None], padding).reshape(x.shape[0], -1, *x.shape[2:])


def delta_product(
    q: Float[Array, "B T Hq K"],
    k: Float[Array, "B T n Hk K"],
    v: Float[Array, "B T n H V"],
    *,
    transition: Delta,
    state: Float[Array, "B H K V"] | None = None,
    segment_ids: Int[Array, "B T"] | Segments | None = None,
    form: str = "chunkwise",
) -> tuple[Float[Array, "B T H V"], Float[Array, "B H K V"]]:
    """As :func:`effarch.ops.recurrence.linear_recurrence`, with n keys, values and write strengths per token.

    Args:
      q: queries, one per token. k, v: keys and values, in the order in which they are written.
      transition: ``beta [B, T, n, H]``, and the decay of a token (not of a step), ``[B, T, H]``, ``[B, T, Hg, K]`` or
        None.
      state, segment_ids, form: as there; T tokens.

    Raises:
      ValueError: names the argument, what was expected and what was given.
    """
    if k.ndim != 5 or v.shape[:3] != k.shape[:3] or transition.beta.shape[:3] != k.shape[:3]:
        given = ", ".join(str(list(x.shape)) for x in (k, v, transition.beta))
        raise ValueError(f"k, v, beta: expected shapes [B, T, n, H, .] that share [B, T, n], got {given}")
    batch, time, steps = k.shape[:3]
    segments = as_segments(segment_ids)
    k, v, beta = (x.reshape(batch, time * steps, *x.shape[3:]) for x in (k, v, transition.beta))
    log_decay = None if transition.log_decay is None else _at(transition.log_decay, 0, steps)
    # The steps of a single token are not split over devices.
    with axes.rules(None) if time == 1 else contextlib.nullcontext():
        o, state = linear_recurrence(
            _at(q, steps - 1, steps),
            k,
            v,
            transition=Delta(beta, log_decay),
            state=state,
            segment_ids=None if segments is None else repeat(segments, steps),
            form=form,
        )
    return o[:, steps - 1 :: steps], state
