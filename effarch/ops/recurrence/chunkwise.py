"""The chunkwise form: matrix products inside chunks, a scan over chunks that keeps one state per boundary.

O(T) time and memory, forward and backward: each chunk is recomputed from its state in the backward pass.
"""

import dataclasses
import math

import jax
import jax.numpy as jnp

from effarch.ops.chunks import in_chunks
from effarch.ops.platform import platform
from effarch.ops.precision import dot
from effarch.ops.recurrence.decay import ChannelDecay, HeadDecay, Masks, Where, for_heads
from effarch.ops.recurrence.inputs import Inputs, group
from effarch.ops.recurrence.inverse import unit_lower_solve
from effarch.typing import Array, Float

CHUNK = 64
LANES = 128  # of a TPU: what the last axis of an array is padded to

Decay = HeadDecay | ChannelDecay


def default_chunk(key_dim: int) -> int:
    """Tokens a chunk for heads of this size: where the work inside chunks and with the state balance, 32 or 64."""
    return CHUNK if key_dim > CHUNK // 2 else CHUNK // 2


def _dot_values(scores: Array, values: Array) -> Array:
    """Scores times values: low-precision values keep their dtype on both sides, as softmax attention's do."""
    return dot(scores.astype(values.dtype), values)


def _decay_chunk(state: Array, x: dict[str, Array], decay: Decay, read: Where) -> tuple[Array, Array]:
    [[scores]] = decay.pairs([(x["q"], read)], [x["k"]])
    o = _dot_values(scores, x["v"]) + decay.read(x["q"], state, read)
    return decay.carry(state) + decay.write(x["k"], x["v"]), o


def _delta_chunk(state: Array, x: dict[str, Array], decay: Decay, read: Where) -> tuple[Array, Array]:
    """``U = (I + lower(Diag(b) <k, k>))^-1 Diag(b) (V - (K e^g) S)``: what is truly written, after all corrections."""
    beta = x["beta"].astype(state.dtype)[..., None]
    [[gram], [scores]] = decay.pairs([(x["k"], "strict"), (x["q"], read)], [x["k"]])
    written = unit_lower_solve(beta * gram, beta * (x["v"].astype(state.dtype) - decay.read(x["k"], state)))
    o = dot(scores, written) + decay.read(x["q"], state, read)
    return decay.carry(state) + decay.write(x["k"], written), o


def _rank_one_chunk(state: Array, x: dict[str, Array], decay: Decay, read: Where) -> tuple[Array, Array]:
    """``Z = (I - lower<r, p>)^-1 (lower<r, k> V + (R e^g') S)``: what every r reads, then ``+ k v^T + p z^T``."""
    [[rk, rp], [qk, qp]] = decay.pairs([(x["r"], "before"), (x["q"], read)], [x["k"], x["p"]])
    z = unit_lower_solve(-rp, _dot_values(rk, x["v"]) + decay.read(x["r"], state, "before"))
    o = _dot_values(qk, x["v"]) + dot(qp, z) + decay.read(x["q"], state, read)
    return decay.carry(state) + decay.write(x["k"], x["v"]) + decay.write(x["p"], z), o


def _dense(shape: tuple[int, ...]) -> tuple[int, ...]:
    """Of heads and channels ``(H, K)``, the shape in which they are held for all of T.

    One axis where a TPU would pad K to whole lanes, which takes twice the memory for heads of 64.
    """
    return (math.prod(shape),) if platform() == "tpu" and len(shape) == 2 and shape[1] % LANES else shape


_CHUNKS = {"decay": _decay_chunk, "delta": _delta_chunk, "rank_one": _rank_one_chunk}


def chunkwise(
    inputs: Inputs, state: Float[Array, "B H K V"], *, before: bool, chunk_size: int = CHUNK
) -> tuple[Float[Array, "B T H V"], Float[Array, "B H K V"]]:
    """The recurrence in chunks of ``chunk_size`` tokens (a power of two); any T."""
    batch, time, heads, width_v = inputs.v.shape
    groups = inputs.groups
    size = min(chunk_size, 1 << math.ceil(math.log2(max(time, 1))))
    count = math.ceil(time / size)

    def lead(x: Array) -> Array:  # [B, H', ...] -> [B G, ...], or [B G, R or 1, ...] where heads share q and k
        x = group(x, groups, axis=1)
        return x.reshape(-1, *x.shape[3:]) if groups[1] == 1 else x.reshape(-1, *x.shape[2:])

    constant = inputs.log_decay.ndim == 1
    if constant and inputs.run is None and count * size != time:  # the tail must not decay the state
        ones = jnp.ones((batch, time), jnp.int32)
        inputs = dataclasses.replace(inputs, run=ones, carried=ones)
    if constant:
        log_decay = lead(jnp.broadcast_to(inputs.log_decay, (batch, heads)))
        if inputs.run is None:  # the same factors for every chunk: formed once
            fixed = HeadDecay.constant(log_decay, for_heads(jnp.ones((batch, size), bool), groups), None)
    by_token = inputs.by_token()
    shapes = {name: x.shape[2:] for name, x in by_token.items()}
    xs = {name: in_chunks(x.reshape(batch, time, *_dense(x.shape[2:])), size) for name, x in by_token.items()}
    if inputs.carried is not None:
        xs["carried"] = xs["carried"][:, :, 0]

    def body(carry: Array, x: dict[str, Array]) -> tuple[Array, Array]:
        run = x.get("run")
        masks = None if run is None else Masks.of(run, x["carried"], groups)
        # Heads go in front of tokens here, where a chunk is in the cache, not outside, where all of T would be copied.
        by_head = {name: y.reshape(batch, size, *shapes[name]) for name, y in x.items() if shapes[name]}
        x = {name: lead(jnp.moveaxis(y, 1, 2)) for name, y in by_head.items()}
        if constant:
            decay = fixed if run is None else HeadDecay.constant(log_decay, for_heads(run > 0, groups), masks)
        else:
            of = HeadDecay if inputs.log_decay.ndim == 3 else ChannelDecay
            decay = of.per_token(x["log_decay"], masks)
        carry, o = _CHUNKS[inputs.kind](carry, x, decay, "before" if before else "after")
        o = jnp.moveaxis(o.reshape(batch, heads, size, width_v), 1, 2).astype(inputs.v.dtype)
        return carry, o.reshape(batch, size, *_dense((heads, width_v)))

    state, o = jax.lax.scan(jax.checkpoint(body, prevent_cse=False), lead(state), xs)
    o = jnp.moveaxis(o, 0, 1).reshape(batch, count * size, heads, width_v)[:, :time]
    return o, state.reshape(batch, heads, *state.shape[-2:])
