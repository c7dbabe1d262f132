"""The linear recurrence that almost every efficient architecture with a recurrent form is.

    S_t = A_t S_{t-1} + k_t v_t^T          o_t = S_t^T q_t          S: [B, H, K, V]

``transition`` says what A_t is; ``form`` how it is computed. All forms are equal.
"""

from functools import partial

import jax.numpy as jnp

from effarch import axes
from effarch.ops.mixing import mixes
from effarch.ops.recurrence.chunkwise import chunkwise, default_chunk
from effarch.ops.recurrence.context import context_parallel
from effarch.ops.recurrence.inputs import prepare
from effarch.ops.recurrence.oracle import oracle
from effarch.ops.recurrence.parallel import parallel
from effarch.ops.recurrence.recurrent import recurrent
from effarch.ops.recurrence.transitions import Constant, Delta, Diagonal, DiagonalPlusRankOne, Scalar, Transition
from effarch.ops.segments import Segments, as_segments
from effarch.typing import Array, Float, Int

__all__ = [
    "Constant",
    "Delta",
    "Diagonal",
    "DiagonalPlusRankOne",
    "Scalar",
    "Transition",
    "linear_recurrence",
    "oracle",
]

FORMS = ("parallel", "chunkwise", "recurrent")
IMPLS = ("xla",)


@mixes(weights=False)
def linear_recurrence(
    q: Float[Array, "B T Hq K"],
    k: Float[Array, "B T Hk K"],
    v: Float[Array, "B T H V"],
    *,
    transition: Transition,
    read: str = "after",
    state: Float[Array, "B H K V"] | None = None,
    segment_ids: Int[Array, "B T"] | Segments | None = None,
    form: str = "chunkwise",
    impl: str | None = None,
    chunk_size: int | None = None,
) -> tuple[Float[Array, "B T H V"], Float[Array, "B H K V"]]:
    """``S_t = A_t S_{t-1} + k_t v_t^T``, ``o_t = S_t^T q_t``.

    Never scales q. Hq and Hk divide H; shared heads are not repeated in memory. Under rules that split "time" over a
    mesh axis, the chunkwise form runs on each device's own tokens and exchanges one affine map per device.

    Args:
      q, k, v: queries, keys, values.
      transition: what A_t is; its decays are natural logarithms <= 0.
      read: "after" reads S_t, "before" reads S_{t-1} (RWKV-5, RWKV-6).
      state: the state before the first token, in promote(float32, inputs); zeros if None.
      segment_ids: ``[B, T]`` documents of packed rows, 0 is padding and the identity. The state belongs to run 1.
      form: "chunkwise" (training, prefill), "recurrent" (decoding), "parallel" (O(T^2), readable).
      impl: "xla", or None for the best that exists for the platform.
      chunk_size: tokens a chunk, a power of two; chunkwise form only. None: about the head size, where the work inside
        chunks and with the state balance, between 32 and 64.

    Returns:
      Outputs in v's dtype (0 at padding), and the state after the last token.

    Raises:
      ValueError: names the argument, what was expected and what was given. A positive log-decay is found outside jit
        only.
    """
    if form not in FORMS:
        raise ValueError(f"form: expected one of {', '.join(FORMS)}, got {form!r}")
    if impl not in (None, *IMPLS):
        raise ValueError(f"impl: expected None or one of {', '.join(IMPLS)}, got {impl!r}")
    if read not in ("after", "before"):
        raise ValueError(f'read: expected "after" or "before", got {read!r}')
    if chunk_size is None:
        chunk_size = default_chunk(k.shape[-1])
    if chunk_size < 1 or chunk_size & (chunk_size - 1):
        raise ValueError(f"chunk_size: expected a power of two, got {chunk_size}")
    inputs = prepare(q, k, v, transition, as_segments(segment_ids), state)
    if state is None:
        state = jnp.zeros((v.shape[0], v.shape[2], k.shape[-1], v.shape[-1]), inputs.state_dtype)
    state = state.astype(inputs.state_dtype)
    before = read == "before"
    if form == "parallel":
        return parallel(inputs, state, before=before)
    if form == "recurrent":
        return recurrent(inputs, state, before=before)
    core = partial(chunkwise, before=before, chunk_size=chunk_size)
    split = axes.context_parallel(v.shape[1])
    return core(inputs, state) if split is None else context_parallel(core, inputs, state, *split)
