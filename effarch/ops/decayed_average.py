"""The average of values under exponential weights that decay: RWKV-4's log-sum-exp pair.

    o_t = (num_{t-1} + e^(u + k_t) v_t) / (den_{t-1} + e^(u + k_t))
    (num, den)_t = w (num, den)_{t-1} + e^k_t (v_t, 1)

The pair is carried divided by e^top, top the running maximum of all exponents in it, so that no key is too large. top
is a unit of measure: no gradient passes through it, the pair has it all. In checkpointed chunks, as
:mod:`effarch.ops.scan`: O(T) time and memory, one state per chunk kept for the backward pass.
"""

from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp

from effarch import axes
from effarch.ops.channels import over_tokens
from effarch.ops.chunks import in_chunks
from effarch.ops.context import Start, split_over_devices
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


class _Tokens(NamedTuple):
    """Of a row or of a chunk, channels in one dim."""

    k: Float[Array, "B T D"]
    v: Float[Array, "B T D"]
    run: Int[Array, "B T"]
    carried: Int[Array, "B T"]
    log_decay: Float[Array, " D"]
    bonus: Float[Array, " D"]

    @property
    def real(self) -> Bool[Array, "B T D"]:
        return jnp.broadcast_to((self.run > 0)[..., None], self.k.shape)

    @property
    def new(self) -> Bool[Array, "B T D"]:
        """The first of a document, other than the one that the carried state is of."""
        first = (self.run > 0) & (self.run != self.carried)
        return jnp.broadcast_to(first[..., None], self.k.shape)


class _Span(NamedTuple):
    """What tokens do to a pair: decay it by e^log_decay (or drop it, where a document begins), then add their own."""

    own: Pair
    log_decay: Float[Array, "*B D"]
    drop: Bool[Array, "*B D"]


def _add(span: _Span, pair: Pair) -> Pair:
    """The pair after the span."""
    before = jnp.where(span.drop, jnp.asarray(NOTHING, span.own.top.dtype), pair.top + span.log_decay)
    top = jax.lax.stop_gradient(jnp.maximum(before, span.own.top))
    old, new = jnp.exp(before - top), jnp.exp(span.own.top - top)
    old = jnp.where(span.drop, jnp.zeros((), old.dtype), old)  # nothing against nothing is one
    return Pair(old * pair.num + new * span.own.num, old * pair.den + new * span.own.den, top)


def _join(left: _Span, right: _Span) -> _Span:
    return _Span(_add(right, left.own), left.log_decay + right.log_decay, left.drop | right.drop)


def _single(v: Array, exponent: Array) -> Pair:
    """The pair ``(v, 1) e^exponent``, measured by its own exponent; the gradient to that passes through the pair."""
    top = jax.lax.stop_gradient(exponent)
    unit = jnp.exp(exponent - top)
    return Pair(unit * v, unit, top)


def _chunks(tokens: _Tokens, chunk_size: int) -> tuple[Array, ...]:
    """What differs from token to token as ``[N, B, C, ...]``; zeros at the end are padding."""
    size = min(chunk_size, tokens.run.shape[1])
    return tuple(in_chunks(x, size) for x in tokens[:4])


def _since_start(x: _Tokens) -> _Span:
    """The spans from the start of a chunk to each of its tokens."""
    empty = Pair.empty((), x.k.dtype)
    own = Pair(*(jnp.where(x.real, y, nothing) for y, nothing in zip(_single(x.v, x.k), empty, strict=True)))
    log_decay = jnp.where(x.real, over_tokens(x.log_decay, x.k), jnp.zeros((), x.k.dtype))
    return jax.lax.associative_scan(_join, _Span(own, log_decay, x.new), axis=1)


def _run(tokens: _Tokens, state: Pair, *, chunk_size: int) -> tuple[Array, Pair]:
    """Averages, and the pair after the last token."""
    rest = tokens[4:]

    def body(carry: Pair, chunk: tuple[Array, ...]) -> tuple[Pair, Array]:
        x = _Tokens(*chunk, *rest)
        after = _add(_since_start(x), jax.tree.map(lambda y: y[:, None], carry))
        before = jax.tree.map(lambda y, z: jnp.concatenate([y[:, None], z[:, :-1]], axis=1), carry, after)
        here = _Span(_single(x.v, x.k + over_tokens(x.bonus, x.k)), jnp.zeros_like(x.k), x.new)
        read = _add(here, before)
        o = jnp.where(x.real, read.num / read.den, jnp.zeros((), read.num.dtype))
        return jax.tree.map(lambda y: y[:, -1], after), o

    state, o = jax.lax.scan(jax.checkpoint(body, prevent_cse=False), state, _chunks(tokens, chunk_size))
    batch, time, width = tokens.v.shape
    return jnp.moveaxis(o, 0, 1).reshape(batch, -1, width)[:, :time], state


def _span(tokens: _Tokens, start: Start, *, chunk_size: int) -> _Span:
    """What all these tokens do to a pair."""
    rest = tokens[4:]

    def body(carry: _Span, chunk: tuple[Array, ...]) -> tuple[_Span, None]:
        return _join(carry, jax.tree.map(lambda y: y[:, -1], _since_start(_Tokens(*chunk, *rest)))), None

    batch, _, width = tokens.v.shape
    zeros = jnp.zeros((batch, width), tokens.v.dtype)
    blank = _Span(Pair.empty(zeros.shape, zeros.dtype), zeros, zeros > 0)
    chunks = _chunks(tokens, chunk_size)
    return jax.lax.scan(jax.checkpoint(body, prevent_cse=False), jax.tree.map(start, blank), chunks)[0]


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

    Under rules that split "time" over a mesh axis, each device averages its own tokens and exchanges one span.

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
    for name, shape in {"k": k.shape[2:], "log_decay": log_decay.shape, "bonus": bonus.shape}.items():
        if list(shape) != channels:
            raise ValueError(f"{name}: expected the channels of v, {channels}, got {list(shape)}")
    segments = as_segments(segment_ids)
    ones = jnp.ones((batch, time), jnp.int32)
    run, carried = (ones, ones) if segments is None else (segments.run, segments.carried_run)
    dtype = accumulator(k, v)
    real = (run > 0)[..., None]
    k, v_wide = (jnp.where(real, x.reshape(batch, time, -1).astype(dtype), jnp.zeros((), dtype)) for x in (k, v))
    tokens = _Tokens(k, v_wide, run, carried, log_decay.reshape(-1).astype(dtype), bonus.reshape(-1).astype(dtype))
    state = Pair.empty((batch, *channels), dtype) if state is None else state
    state = jax.tree.map(lambda x: x.reshape(batch, -1).astype(dtype), state)
    average, split = partial(_run, chunk_size=chunk_size), axes.context_parallel(time)
    if split is None:
        o, state = average(tokens, state)
    else:
        span, (mesh, axis) = partial(_span, chunk_size=chunk_size), split
        o, state = split_over_devices(tokens, state, run=average, span=span, apply=_add, mesh=mesh, axis=axis)
    return o.reshape(v.shape).astype(v.dtype), jax.tree.map(lambda x: x.reshape(batch, *channels), state)
