"""The elementwise linear scan ``h_t = a_t (.) h_{t-1} + b_t``: RG-LRU, HGRN, minGRU, Mamba-1.

Gates are formed inside checkpointed chunks and outputs read there, so that neither [T, width] gates nor the states of
all tokens (Mamba-1: T x D x N) exist at once. O(T) time, one state per chunk kept for the backward pass. A sequence
that is split over devices exchanges one affine map per device.
"""

import dataclasses
from collections.abc import Callable
from functools import partial

import jax
import jax.numpy as jnp
from jax.flatten_util import ravel_pytree

from effarch import axes
from effarch.ops.chunks import in_chunks
from effarch.ops.context import Start, split_over_devices
from effarch.ops.precision import accumulator
from effarch.ops.segments import Segments, as_segments
from effarch.typing import Array, Int, PyTree

CHUNK = 64

Tokens = tuple[PyTree, Array, Array]


def _given(inputs: tuple[Array, Array], parameters: PyTree) -> tuple[Array, Array]:
    return inputs


def _states(h: Array, inputs: PyTree) -> Array:
    return h


def linear_scan(
    inputs: PyTree,
    *,
    state: Array,
    gates: Callable[[PyTree, PyTree], tuple[Array, Array]] = _given,
    parameters: PyTree = (),
    read: Callable[[Array, PyTree], Array] = _states,
    segment_ids: Int[Array, "B T"] | Segments | None = None,
    chunk_size: int = CHUNK,
) -> tuple[Array, Array]:
    """``h_t = exp(log_decay_t) (.) h_{t-1} + x_t``, and ``o_t = read(h_t, inputs_t)``.

    Args:
      inputs: pytree of ``[B, T, ...]``; by default the pair ``(log_decay, x)``.
      state: ``[B, ...]`` the state before the first token (zeros to start anew); it belongs to run 1.
      gates: ``(inputs of a chunk, parameters) -> (log_decay, x)``, each ``[B, C, *state.shape[1:]]``; log_decay <= 0.
      parameters: what gates read besides the inputs, the same for every token. Neither gates nor read may close over
        arrays: of those, jax cannot take the gradient on a sequence that is split over devices.
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
    ones = jnp.ones((batch, time), jnp.int32)
    run, carried = (ones, ones) if segments is None else (segments.run, segments.carried_run)
    state = state.astype(accumulator(state, *leaves))
    flat, unravel = ravel_pytree(parameters)  # of one dim: the same on every device
    tokens, scan = ((inputs, run, carried), flat), _Scan(gates, read, chunk_size, unravel)
    split = axes.context_parallel(time)
    if split is None:
        return scan.run(tokens, state)
    span, (mesh, axis) = partial(scan.span, like=state), split
    return split_over_devices(tokens, state, run=scan.run, span=span, apply=_apply, mesh=mesh, axis=axis)


def _apply(affine: tuple[Array, Array], state: Array) -> Array:
    decay, added = affine
    return decay * state + added


@dataclasses.dataclass(frozen=True)
class _Scan:
    """The scan over tokens ``(inputs, run, carried_run)``, each ``[B, T, ...]``, with ``parameters`` in one array."""

    gates: Callable[[PyTree, PyTree], tuple[Array, Array]]
    read: Callable[[Array, PyTree], Array]
    chunk_size: int
    unravel: Callable[[Array], PyTree]

    def _chunks(self, tokens: Tokens) -> tuple[Tokens, int]:
        """``[N, B, C, ...]``, and the tokens in a row; zeros at the end are padding."""
        time = tokens[1].shape[1]
        return jax.tree.map(partial(in_chunks, size=min(self.chunk_size, time)), tokens), time

    def _since_start(self, chunk: Tokens, flat: Array, like: Array) -> tuple[Array, Array]:
        """``(decay, added)`` from the start of the chunk to each token, so that ``h = decay * carry + added``."""
        inputs, run, carried = chunk
        log_decay, x = self.gates(inputs, self.unravel(flat))
        wide = run.shape + (1,) * (like.ndim - 1)
        real, new = (run > 0).reshape(wide), ((run > 0) & (run != carried)).reshape(wide)
        zero = jnp.zeros((), like.dtype)
        decay = jnp.where(new, zero, jnp.exp(jnp.where(real, log_decay.astype(like.dtype), zero)))
        x = jnp.where(real, x.astype(like.dtype), zero)

        def combine(left: tuple[Array, Array], right: tuple[Array, Array]) -> tuple[Array, Array]:
            return left[0] * right[0], right[0] * left[1] + right[1]

        decay, x = jnp.broadcast_arrays(decay, x)
        return jax.lax.associative_scan(combine, (decay, x), axis=1)

    def run(self, given: tuple[Tokens, Array], state: Array) -> tuple[Array, Array]:
        """Outputs and the state after the last token."""
        tokens, flat = given

        def body(carry: Array, chunk: Tokens) -> tuple[Array, Array]:
            decay, added = self._since_start(chunk, flat, carry)
            h = decay * carry[:, None] + added
            return h[:, -1], self.read(h, chunk[0])

        chunks, time = self._chunks(tokens)
        state, o = jax.lax.scan(jax.checkpoint(body, prevent_cse=False), state, chunks)
        o = jnp.moveaxis(o, 0, 1)
        return o.reshape(len(o), -1, *o.shape[3:])[:, :time], state

    def span(self, given: tuple[Tokens, Array], start: Start, *, like: Array) -> tuple[Array, Array]:
        """The affine map ``h -> decay * h + added`` of these tokens; ``like``: a state."""
        tokens, flat = given

        def body(carry: tuple[Array, Array], chunk: Tokens) -> tuple[tuple[Array, Array], None]:
            decay, added = (x[:, -1] for x in self._since_start(chunk, flat, carry[0]))
            return (decay * carry[0], _apply((decay, added), carry[1])), None

        blank = start(jnp.ones(like.shape, like.dtype)), start(jnp.zeros(like.shape, like.dtype))
        return jax.lax.scan(jax.checkpoint(body, prevent_cse=False), blank, self._chunks(tokens)[0])[0]
