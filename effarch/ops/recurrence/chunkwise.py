"""The chunkwise form: matrix products inside chunks, a scan over chunks that keeps one state per boundary.

O(T) time and memory, forward and backward: each chunk is recomputed from its state in the backward pass.
"""

import dataclasses
import math

import jax
import jax.numpy as jnp

from effarch.ops.precision import dot
from effarch.ops.recurrence.decay import ChannelDecay, HeadDecay, Masks
from effarch.ops.recurrence.inputs import Inputs, group
from effarch.ops.recurrence.inverse import unit_lower_inverse
from effarch.typing import Array, Float

CHUNK = 64

Decay = HeadDecay | ChannelDecay


def default_chunk(key_dim: int) -> int:
    """Tokens a chunk for heads of this size: where the work inside chunks and with the state balance, 32 or 64."""
    return CHUNK if key_dim > CHUNK // 2 else CHUNK // 2


def _dot_values(scores: Array, values: Array) -> Array:
    """Scores times values: low-precision values keep their dtype on both sides, as softmax attention's do."""
    return dot(scores.astype(values.dtype), values)


def _decay_chunk(state: Array, x: dict[str, Array], decay: Decay, before: bool) -> tuple[Array, Array]:
    scores = decay.pairs(x["q"], x["k"], before=before)
    o = _dot_values(scores, x["v"]) + decay.read(x["q"], state, before=before)
    return decay.carry(state) + decay.write(x["k"], x["v"]), o


def _delta_chunk(state: Array, x: dict[str, Array], decay: Decay, before: bool) -> tuple[Array, Array]:
    """``U = (I + lower(Diag(b) <k, k>))^-1 Diag(b) (V - (K e^g) S)``: what is truly written, after all corrections."""
    beta = x["beta"].astype(state.dtype)[..., None]
    inverse = unit_lower_inverse(beta * decay.pairs(x["k"], x["k"], strict=True))
    written = dot(inverse, beta * (x["v"].astype(state.dtype) - decay.read(x["k"], state)))
    o = dot(decay.pairs(x["q"], x["k"], before=before), written) + decay.read(x["q"], state, before=before)
    return decay.carry(state) + decay.write(x["k"], written), o


def _rank_one_chunk(state: Array, x: dict[str, Array], decay: Decay, before: bool) -> tuple[Array, Array]:
    """``Z = (I - lower<r, p>)^-1 (lower<r, k> V + (R e^g') S)``: what every r reads, then ``+ k v^T + p z^T``."""
    inverse = unit_lower_inverse(-decay.pairs(x["r"], x["p"], before=True))
    reads = _dot_values(decay.pairs(x["r"], x["k"], before=True), x["v"]) + decay.read(x["r"], state, before=True)
    z = dot(inverse, reads)
    o = _dot_values(decay.pairs(x["q"], x["k"], before=before), x["v"])
    o = o + dot(decay.pairs(x["q"], x["p"], before=before), z) + decay.read(x["q"], state, before=before)
    return decay.carry(state) + decay.write(x["k"], x["v"]) + decay.write(x["p"], z), o


_CHUNKS = {"decay": _decay_chunk, "delta": _delta_chunk, "rank_one": _rank_one_chunk}


def chunkwise(
    inputs: Inputs, state: Float[Array, "B H K V"], *, before: bool, chunk_size: int = CHUNK
) -> tuple[Float[Array, "B T H V"], Float[Array, "B H K V"]]:
    """The recurrence in chunks of ``chunk_size`` tokens (a power of two); any T."""
    batch, time, heads, width_v = inputs.v.shape
    groups = inputs.groups
    size = min(chunk_size, 1 << math.ceil(math.log2(max(time, 1))))
    count = math.ceil(time / size)

    def to_chunks(x: Array) -> Array:  # [B, T, H, .] -> [N, B, H, C, .]; zeros are the identity
        x = jnp.pad(x, [(0, 0), (0, count * size - time)] + [(0, 0)] * (x.ndim - 2))
        x = jnp.moveaxis(x.reshape(batch, count, size, *x.shape[2:]), 1, 0)
        return x if x.ndim == 3 else jnp.moveaxis(x, 2, 3)

    constant = inputs.log_decay.ndim == 1
    if constant and inputs.run is None and count * size != time:  # the tail must not decay the state
        ones = jnp.ones((batch, time), jnp.int32)
        inputs = dataclasses.replace(inputs, run=ones, carried=ones)
    if constant:
        log_decay = inputs.log_decay.reshape(groups)
        if inputs.run is None:  # the same factors for every chunk: formed once
            fixed = HeadDecay.constant(log_decay, jnp.ones((1, size), bool), None)
    xs = {name: to_chunks(x) for name, x in inputs.by_token().items()}
    if inputs.carried is not None:
        xs["carried"] = xs["carried"][:, :, 0]

    def body(carry: Array, x: dict[str, Array]) -> tuple[Array, Array]:
        masks = None if inputs.run is None else Masks.of(x["run"], x["carried"])
        x = {name: y if name in ("run", "carried") else group(y, groups, axis=1) for name, y in x.items()}
        if constant:
            decay = fixed if inputs.run is None else HeadDecay.constant(log_decay, x["run"] > 0, masks)
        else:
            of = HeadDecay if inputs.log_decay.ndim == 3 else ChannelDecay
            decay = of.per_token(x["log_decay"], masks)
        carry, o = _CHUNKS[inputs.kind](carry, x, decay, before)
        return carry, o.astype(inputs.v.dtype)

    state = state.reshape(batch, *groups, *state.shape[2:])
    state, o = jax.lax.scan(jax.checkpoint(body, prevent_cse=False), state, xs)
    o = jnp.moveaxis(o.reshape(count, batch, heads, size, width_v), 0, 1)  # [B, N, H, C, V]
    o = jnp.moveaxis(o, 2, 3).reshape(batch, count * size, heads, width_v)[:, :time]
    return o, state.reshape(batch, heads, *state.shape[3:])
