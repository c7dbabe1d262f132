"""Decays inside one chunk: between pairs of tokens, from its start, to its end.

Everything is a *segment sum*, a sum of log-decays over the tokens in between, never the difference of two prefix
sums, which cancels (a log-decay of -1e4 on alternate tokens leaves 5e-3 of error at C = 64). All exponents are <= 0
and are masked before the exponential, so neither values nor gradients overflow.

Shapes: a chunk holds ``[B, G, R, C, .]``: G groups of heads that share q and k, R heads in each; dims of 1 broadcast.
"""

import dataclasses
from typing import Literal

import jax.numpy as jnp

from effarch.ops.precision import dot
from effarch.typing import Array, Bool, Float, Int

SUB_BLOCK = 16  # channel-wise decays: tokens that share a reference point


@dataclasses.dataclass(frozen=True)
class Masks:
    """Who sees whom inside a chunk, by run equality; None where no document ends and no token is padding.

    Attributes:
      pair: ``[B, 1, 1, C, C]`` same run, both real.
      into: ``[B, 1, 1, C, 1]`` the token belongs to the run of the state at the chunk's start.
      out: ``[B, 1, 1, C, 1]`` the token belongs to the run of the state at the chunk's end.
      keep: ``[B, 1, 1, 1, 1]`` the two runs are the same.
    """

    pair: Bool[Array, "B 1 1 C C"]
    into: Bool[Array, "B 1 1 C 1"]
    out: Bool[Array, "B 1 1 C 1"]
    keep: Bool[Array, "B 1 1 1 1"]

    @classmethod
    def of(cls, run: Int[Array, "B C"], carried: Int[Array, " B"]) -> "Masks":
        """From run indices (0: padding) and the run of the state at the chunk's start."""
        last = jnp.maximum(run.max(axis=1), carried)
        real = run > 0
        pair = (run[:, :, None] == run[:, None, :]) & real[:, :, None]
        into = real & (run == carried[:, None])
        out = real & (run == last[:, None])
        return cls(
            pair=pair[:, None, None],
            into=into[:, None, None, :, None],
            out=out[:, None, None, :, None],
            keep=(last == carried)[:, None, None, None, None],
        )


def _where(mask: Array, x: Array) -> Array:
    return jnp.where(mask, x, jnp.zeros((), x.dtype))


def _kept(masks: Masks | None, which: Literal["into", "out", "keep"], x: Array) -> Array:
    """``x`` where the mask of that name is set, 0 elsewhere; ``x`` itself without masks."""
    return x if masks is None else _where(getattr(masks, which), x)


def _shift(x: Array, axis: int) -> Array:
    """Row i becomes row i - 1, the first zero: from decays after a token's own to decays before it."""
    pad = [(0, 0)] * x.ndim
    pad[axis] = (1, 0)
    return jnp.pad(jnp.take(x, jnp.arange(x.shape[axis] - 1), axis=axis), pad)


def _tril(size: int, strict: bool = False) -> Array:
    return jnp.tril(jnp.ones((size, size), bool), -1 if strict else 0)


def _lead(mask: Array, like: Array, trailing: int = 0) -> Array:
    """``mask`` with as many dims as ``like``: ones in front, and ``trailing`` ones behind."""
    mask = mask.reshape(mask.shape + (1,) * trailing)
    return mask.reshape((1,) * (like.ndim - mask.ndim) + mask.shape)


def segment_sums(x: Float[Array, "... C"]) -> Float[Array, "... C C"]:
    """``y[i, j] = sum of x over j < l <= i``; 0 for j >= i."""
    x = jnp.broadcast_to(x[..., :, None], (*x.shape, x.shape[-1]))
    return jnp.cumsum(_where(_lead(_tril(x.shape[-1], strict=True), x), x), axis=-2)


@dataclasses.dataclass(frozen=True)
class HeadDecay:
    """One decay per head and token (classes 0 and 1; scalar delta): a C x C matrix of factors.

    Attributes:
      between: ``[B, G, R, C, C]`` product of the decays after j up to i; its upper triangle is not read.
      start: ``[B, G, R, C, 1]`` product of the decays up to and with i.
      end: ``[B, G, R, C, 1]`` product of the decays after i.
      whole: ``[B, G, R, 1, 1]``.
      masks: runs of the chunk, or None.
    """

    between: Array
    start: Array
    end: Array
    whole: Array
    masks: Masks | None

    @classmethod
    def per_token(cls, log_decay: Float[Array, "B G R C"], masks: Masks | None) -> "HeadDecay":
        """From natural-log decays, 0 at padding."""
        sums = segment_sums(log_decay)
        start = jnp.cumsum(log_decay, axis=-1)
        return cls._from_sums(sums, start, sums[..., -1, :], masks)

    @classmethod
    def constant(cls, log_decay: Float[Array, "G R"], real: Bool[Array, "B C"], masks: Masks | None) -> "HeadDecay":
        """From one natural-log decay per head; padding does not advance the clock. Distances are exact integers."""
        log_decay = log_decay[None, :, :, None]
        clock = jnp.cumsum(real.astype(jnp.int32), axis=1, dtype=jnp.int32)[:, None, None]
        size = real.shape[1]
        steps = jnp.where(_tril(size), clock[..., :, None] - clock[..., None, :], 0)
        dtype = log_decay.dtype
        return cls._from_sums(
            log_decay[..., None] * steps.astype(dtype),
            log_decay * clock.astype(dtype),
            log_decay * (clock[..., -1:] - clock).astype(dtype),
            masks,
        )

    @classmethod
    def _from_sums(cls, between: Array, start: Array, end: Array, masks: Masks | None) -> "HeadDecay":
        start, end = jnp.exp(start)[..., None], jnp.exp(end)[..., None]
        return cls(jnp.exp(between), start, end, start[..., -1:, :], masks)

    def pairs(self, x: Array, y: Array, *, before: bool = False, strict: bool = False) -> Array:
        """``<x_i, y_j>`` decayed from j to i, for j <= i.

        j < i if ``strict`` or ``before`` (i's own decay left out).
        """
        between = _shift(self.between, -2) if before else self.between
        mask = _tril(x.shape[-2], strict or before)[None, None, None]
        if self.masks is not None:
            mask = mask & self.masks.pair
        return _where(mask, dot(x, jnp.swapaxes(y, -1, -2)) * between)

    def read(self, x: Array, state: Array, *, before: bool = False) -> Array:
        """``x_i`` read from the state at the chunk's start, decayed up to i."""
        start = self.start
        if before:
            start = jnp.concatenate([jnp.ones_like(start[..., :1, :]), start[..., :-1, :]], axis=-2)
        return _kept(self.masks, "into", dot(x.astype(state.dtype), state) * start)

    def carry(self, state: Array) -> Array:
        """The state at the chunk's start, decayed to its end."""
        return _kept(self.masks, "keep", state * self.whole)

    def write(self, y: Array, values: Array) -> Array:
        """What the chunk adds to the state at its end: ``sum_j y_j values_j^T`` decayed from j."""
        values = _kept(self.masks, "out", values.astype(self.end.dtype) * self.end)
        return dot(jnp.swapaxes(y, -1, -2).astype(values.dtype), values)


@dataclasses.dataclass(frozen=True)
class ChannelDecay:
    """One decay per key channel and token (class 2; KDA; RWKV-7). Same methods as :class:`HeadDecay`.

    e^(-g) over a whole chunk overflows, so tokens are grouped in sub-blocks: inside one, the factors of all pairs are
    formed; between two, ``x`` is decayed from the start of its own and ``y`` to that point, both exponents <= 0.

    Attributes:
      inside: ``[Z, S, s, s, K]`` factors of the pairs in a sub-block (Z = B G R; S sub-blocks of s tokens).
      head: ``[Z, S, s, K]`` from the start of the sub-block up to and with the token.
      head_before: the same without the token's own decay.
      tail: ``[Z, S, S, s, K]`` from token to the start of a later sub-block: [later, own, token].
      start, start_before, end: ``[B, G, R, C, K]`` relative to the chunk.
      whole: ``[B, G, R, K, 1]``.
      masks: runs of the chunk, or None.
    """

    inside: Array
    head: Array
    head_before: Array
    tail: Array
    start: Array
    start_before: Array
    end: Array
    whole: Array
    masks: Masks | None

    @classmethod
    def per_token(cls, log_decay: Float[Array, "B G R C K"], masks: Masks | None) -> "ChannelDecay":
        """From natural-log decays, 0 at padding."""
        size, width = log_decay.shape[-2:]
        sub = min(SUB_BLOCK, size)
        count = size // sub
        g = log_decay.reshape(-1, count, sub, width)  # few dims: compilers lay them out better
        sums = jnp.moveaxis(segment_sums(jnp.moveaxis(g, -1, -2)), -3, -1)  # [.., S, s, s, K]
        head = jnp.cumsum(g, axis=-2)
        head_before = jnp.pad(head[..., :-1, :], [(0, 0)] * (g.ndim - 2) + [(1, 0), (0, 0)])
        tail = sums[..., -1, :, :]
        totals = head[..., -1, :]
        # Whole sub-blocks strictly between two: sums of totals by 0/1 masks, so nothing is ever subtracted.
        index = jnp.arange(count)
        strictly = (index[None, None, :] > index[None, :, None]) & (index[None, None, :] < index[:, None, None])
        others = totals[..., None, :, :]  # [.., S, S, K] summed over its own axis -2
        past = _lead(_tril(count, strict=True), others, trailing=1)
        gaps = _where(_lead(strictly, others[..., None, :, :], trailing=1), others[..., None, :, :]).sum(axis=-2)
        earlier = _where(past, others).sum(axis=-2)
        later = _where(jnp.swapaxes(past, -2, -3), others).sum(axis=-2)
        flat = log_decay.shape
        return cls(
            inside=jnp.exp(sums),
            head=jnp.exp(head),
            head_before=jnp.exp(head_before),
            tail=jnp.exp(tail[..., None, :, :, :] + gaps[..., None, :]),
            start=jnp.exp((head + earlier[..., None, :]).reshape(flat)),
            start_before=jnp.exp((head_before + earlier[..., None, :]).reshape(flat)),
            end=jnp.exp((tail + later[..., None, :]).reshape(flat)),
            whole=jnp.exp(totals.sum(axis=-2)).reshape(*flat[:-2], width, 1),
            masks=masks,
        )

    def pairs(self, x: Array, y: Array, *, before: bool = False, strict: bool = False) -> Array:
        """As :meth:`HeadDecay.pairs`."""
        dtype = self.inside.dtype
        count, sub, width = self.head.shape[-3:]
        size = count * sub
        mine = self.start.shape[:-2]
        lead = jnp.broadcast_shapes(x.shape[:-2], y.shape[:-2], mine)

        def fold(a: Array, given: tuple[int, ...]) -> Array:  # [*given, ...] -> [Z, ...]
            rest = a.shape[len(given) :]
            return jnp.broadcast_to(a, (*lead, *rest)).reshape(-1, *rest)

        def shared(a: Array) -> Array:  # decays of fewer heads than x and y
            return a if mine == lead else fold(a.reshape(*mine, *a.shape[1:]), mine)

        x = fold(x.astype(dtype), x.shape[:-2]).reshape(-1, count, sub, width)
        y = fold(y.astype(dtype), y.shape[:-2]).reshape(-1, count, sub, width)
        inside = shared(_shift(self.inside, -3) if before else self.inside)
        own = (x[:, :, :, None, :] * y[:, :, None, :, :] * inside).sum(axis=-1)  # [Z, S, s, s]
        past = (y[:, None] * shared(self.tail)).reshape(-1, count, size, width)  # [Z, S, C, K]
        across = dot(x * shared(self.head_before if before else self.head), jnp.swapaxes(past, -1, -2))
        index = jnp.arange(size) // sub
        same = (index[:, None] == index[None, :])[None]
        scores = jnp.where(same, jnp.tile(own.reshape(-1, size, sub), (1, 1, count)), across.reshape(-1, size, size))
        scores = scores.reshape(*lead, size, size)
        mask = _tril(size, strict or before)[None, None, None]
        if self.masks is not None:
            mask = mask & self.masks.pair
        return _where(mask, scores)

    def read(self, x: Array, state: Array, *, before: bool = False) -> Array:
        """As :meth:`HeadDecay.read`."""
        x = x.astype(state.dtype) * (self.start_before if before else self.start)
        return dot(_kept(self.masks, "into", x), state)

    def carry(self, state: Array) -> Array:
        """As :meth:`HeadDecay.carry`."""
        return _kept(self.masks, "keep", state * self.whole)

    def write(self, y: Array, values: Array) -> Array:
        """As :meth:`HeadDecay.write`."""
        y = _kept(self.masks, "out", y.astype(self.end.dtype) * self.end)
        return dot(jnp.swapaxes(y, -1, -2), values.astype(y.dtype))
