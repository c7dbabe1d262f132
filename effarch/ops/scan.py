"""The elementwise linear scan ``h_t = a_t (.) h_{t-1} + b_t``: RG-LRU, HGRN, minGRU, Mamba-1.

Gates are formed inside checkpointed chunks and outputs read there, so that neither [T, width] gates nor the states of
all tokens (Mamba-1: T x D x N) exist at once. O(T) time, one state per chunk kept for the backward pass.
"""

import math
from collections.abc import Callable

import jax
import jax.numpy as jnp

from effarch.ops.precision import accumulator
from effarch.ops.segments import Segments, as_segments
from effarch.typing import Array, Int, PyTree

CHUNK = 64


def _given(inputs: tuple[Array, Array]) -> tuple[Array, Array]:
    return inputs


def _states(h: Array, inputs: PyTree) -> Array:
    return h


def linear_scan(
    inputs: PyTree,
    *,
    state: Array,
    gates: Callable[[PyTree], tuple[Array, Array]] = _given,
    read: Callable[[Array, PyTree], Array] = _states,
    segment_ids: Int[Array, "B T"] | Segments | None = None,
    chunk_size: int = CHUNK,
) -> tuple[Array, Array]:
    """``h_t = exp(log_decay_t) (.) h_{t-1} + x_t``, and ``o_t = read(h_t, inputs_t)``.

    Args:
      inputs: pytree of ``[B, T, ...]``; by default the pair ``(log_decay, x)``.
      state: ``[B, ...]`` the state before the first token (zeros to start anew); it belongs to run 1.
      gates: ``inputs of a chunk -> (log_decay, x)``, each ``[B, C, *state.shape[1:]]``; natural log, <= 0.
      read: ``(h [B, C, ...], inputs of a chunk) -> outputs [B, C, ...]``; by default the states themselves.
      segment_ids: ``[B, T]`` documents; 0 is padding and the identity.
      chunk_size: tokens a chunk.

    Returns:
      Outputs ``[B, T, ...]`` and the state after the last token, in promote(float32, inputs).

    Raises:
      ValueError: ``inputs`` do not share ``[B, T]``, or their batch is not that of ``state``.
    """
    leaves = jax.tree.leaves(inputs)
    batch, time = leaves[0].shape[:2]
    if any(x.shape[:2] != (batch, time) for x in leaves) or state.shape[0] != batch:
        shapes = ", ".join(str(list(x.shape)) for x in leaves)
        raise ValueError(f"inputs: expected arrays [B, T, ...] with the B of state {list(state.shape)}, got {shapes}")
    segments = as_segments(segment_ids)
    size = min(chunk_size, time)
    count = math.ceil(time / size)
    run = jnp.ones((batch, time), jnp.int32) if segments is None else segments.run
    carried = jnp.ones((batch, time), jnp.int32) if segments is None else segments.carried_run
    dtype = accumulator(state, *leaves)

    def to_chunks(x: Array) -> Array:
        x = jnp.pad(x, [(0, 0), (0, count * size - time)] + [(0, 0)] * (x.ndim - 2))
        return jnp.moveaxis(x.reshape(batch, count, size, *x.shape[2:]), 1, 0)

    def body(carry: Array, chunk: tuple[PyTree, Array, Array]) -> tuple[Array, Array]:
        xs, run, carried = chunk
        log_decay, x = gates(xs)
        wide = (batch, size) + (1,) * (state.ndim - 1)
        real, new = (run > 0).reshape(wide), ((run > 0) & (run != carried)).reshape(wide)
        log_decay = jnp.where(real, log_decay.astype(dtype), jnp.zeros((), dtype))
        decay = jnp.where(new, jnp.zeros((), dtype), jnp.exp(log_decay))
        x = jnp.where(real, x.astype(dtype), jnp.zeros((), dtype))

        def combine(left: tuple[Array, Array], right: tuple[Array, Array]) -> tuple[Array, Array]:
            return left[0] * right[0], right[0] * left[1] + right[1]

        decay, x = jnp.broadcast_arrays(decay, x)
        decay, x = jax.lax.associative_scan(combine, (decay, x), axis=1)
        h = decay * carry[:, None] + x
        return h[:, -1], read(h, xs)

    chunks = (jax.tree.map(to_chunks, inputs), to_chunks(run), to_chunks(carried))
    state, o = jax.lax.scan(jax.checkpoint(body, prevent_cse=False), state.astype(dtype), chunks)
    o = jnp.moveaxis(o, 0, 1)
    return o.reshape(batch, count * size, *o.shape[3:])[:, :time], state
