"""The average of values under exponential weights that decay: RWKV-4's log-sum-exp pair.

    o_t = (num_{t-1} + e^(u + k_t) v_t) / (den_{t-1} + e^(u + k_t))
    (num, den)_t = w (num, den)_{t-1} + e^k_t (v_t, 1)

The pair is carried divided by e^top, top the running maximum of all exponents in it, so that no key is too large. top
is a unit of measure: no gradient passes through it, the pair has it all. In checkpointed chunks, as
:mod:`effarch.ops.scan`: O(T) time and memory, one state per chunk kept for the backward pass.
"""

import math
from typing import NamedTuple

import jax
import jax.numpy as jnp

from effarch.ops.channels import over_tokens
from effarch.ops.precision import accumulator
from effarch.ops.segments import Segments, as_segments
from effarch.typing import Array, Bool, Float, Int

CHUNK = 64
NOTHING = -1e38  # top of an empty pair; finite, so that differences are numbers


class Pair(NamedTuple):
    """``num e^top`` and ``den e^top``: the weighted sum of the values and the sum of the weights.

    Attributes:
      num, den: divided by e^top. top: the largest exponent.
    """

    num: Float[Array, "*B D"]
    den: Float[Array, "*B D"]
    top: Float[Array, "*B D"]

    @classmethod
    def empty(cls, shape: tuple[int, ...], dtype: jnp.dtype) -> "Pair":
        """No token yet."""
        return cls(jnp.zeros(shape, dtype), jnp.zeros(shape, dtype), jnp.full(shape, NOTHING, dtype))


class _Span(NamedTuple):
    """What tokens do to a pair: decay it by e^log_decay (or drop it, where a document begins), then add their own."""

    own: Pair
    log_decay: Array
    drop: Bool[Array, "B C D"]


def _add(pair: Pair, log_decay: Array, drop: Array, own: Pair) -> Pair:
    """``own`` plus ``pair`` decayed by e^log_decay, or without it where ``drop``."""
    before = jnp.where(drop, jnp.asarray(NOTHING, own.top.dtype), pair.top + log_decay)
    top = jax.lax.stop_gradient(jnp.maximum(before, own.top))
    old, new = jnp.exp(before - top), jnp.exp(own.top - top)
    old = jnp.where(drop, jnp.zeros((), old.dtype), old)  # nothing against nothing is one
    return Pair(old * pair.num + new * own.num, old * pair.den + new * own.den, top)


def _join(left: _Span, right: _Span) -> _Span:
    own = _add(left.own, right.log_decay, right.drop, right.own)
    return _Span(own, left.log_decay + right.log_decay, left.drop | right.drop)


def _measured(num: Array, den: Array, exponent: Array) -> Pair:
    """The pair ``(num, den) e^exponent``, measured by its own exponent: gradients to it pass through the pair."""
    top = jax.lax.stop_gradient(exponent)
    unit = jnp.exp(exponent - top)
    return Pair(unit * num, unit * den, top)


def decayed_average(
    k: Float[Array, "B T ..."],
    v: Float[Array, "B T ..."],
    *,
    log_decay: Float[Array, "..."],
    bonus: Float[Array, "..."],
    state: Pair | None = None,
    segment_ids: Int[Array, "B T"] | Segments | None = None,
    chunk_size: int = CHUNK,
) -> tuple[Float[Array, "B T ..."], Pair]:
    """The average of the values so far, weights e^k decayed by e^log_decay a token, that of the token itself e^(u + k).

    Args:
      k, v: log-weights and values, channel by channel.
      log_decay: per channel, natural log, <= 0. bonus: per channel, u.
      state: the pair before the first token, in promote(float32, inputs); empty if None. It belongs to run 1.
      segment_ids: ``[B, T]`` documents; 0 is padding and the identity, its output is 0.
      chunk_size: tokens a chunk; 1 is the recurrence as it is written.

    Returns:
      Averages in v's dtype, and the pair after the last token.

    Raises:
      ValueError: shapes differ.
    """
    batch, time, *channels = v.shape
    shapes = {"k": k.shape[2:], "log_decay": log_decay.shape, "bonus": bonus.shape}
    for name, shape in shapes.items():
        if list(shape) != channels:
            raise ValueError(f"{name}: expected the channels of v, {channels}, got {list(shape)}")
    segments = as_segments(segment_ids)
    size = min(chunk_size, time)
    count = math.ceil(time / size)
    run = jnp.ones((batch, time), jnp.int32) if segments is None else segments.run
    carried = jnp.ones((batch, time), jnp.int32) if segments is None else segments.carried_run
    dtype = accumulator(k, v)
    state = Pair.empty((batch, *channels), dtype) if state is None else Pair(*(x.astype(dtype) for x in state))

    def to_chunks(x: Array) -> Array:
        x = jnp.pad(x, [(0, 0), (0, count * size - time)] + [(0, 0)] * (x.ndim - 2))
        return jnp.moveaxis(x.reshape(batch, count, size, *x.shape[2:]), 1, 0)

    def body(carry: Pair, chunk: tuple[Array, ...]) -> tuple[Pair, Array]:
        k, v, run, carried = chunk
        wide = (batch, size) + (1,) * len(channels)
        real = jnp.broadcast_to((run > 0).reshape(wide), k.shape)
        new = jnp.broadcast_to(((run > 0) & (run != carried)).reshape(wide), k.shape)
        zero = jnp.zeros((), dtype)
        k, v = jnp.where(real, k.astype(dtype), zero), jnp.where(real, v.astype(dtype), zero)

        own = _measured(v, jnp.ones_like(v), k)
        own = Pair(*(jnp.where(real, x, empty) for x, empty in zip(own, Pair.empty((), dtype), strict=True)))
        spans = _Span(own, jnp.where(real, over_tokens(log_decay, k), zero), new)
        spans = jax.lax.associative_scan(_join, spans, axis=1)
        after = _add(Pair(*(x[:, None] for x in carry)), spans.log_decay, spans.drop, spans.own)
        before = Pair(*(jnp.concatenate([x[:, None], y[:, :-1]], axis=1) for x, y in zip(carry, after, strict=True)))

        here = _measured(v, jnp.ones_like(v), k + over_tokens(bonus, k))
        read = _add(before, jnp.zeros_like(k), new, here)
        return Pair(*(x[:, -1] for x in after)), jnp.where(real, read.num / read.den, zero).astype(chunk[1].dtype)

    chunks = tuple(to_chunks(x) for x in (k, v, run, carried))
    state, o = jax.lax.scan(jax.checkpoint(body, prevent_cse=False), _measured(*state), chunks)
    o = jnp.moveaxis(o, 0, 1)
    return o.reshape(batch, count * size, *channels)[:, :time], state
