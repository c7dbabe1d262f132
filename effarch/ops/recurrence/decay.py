"""Decays inside one chunk: between pairs of tokens, from its start, to its end.

Everything is a *segment sum*, a sum of log-decays over the tokens in between, never the difference of two prefix
sums, which cancels (a log-decay of -1e4 on alternate tokens leaves 5e-3 of error at C = 64). All exponents are <= 0
and are masked before the exponential, so neither values nor gradients overflow. Factors of decays multiply, all <= 1.

Shapes: a chunk holds ``[*Z, C, .]`` with Z = (B G,), or (B G, R) where R heads share the q and k of their group; dims
of 1 broadcast. Few dims are worth it: XLA on CPU reduces arrays of five dims forty times slower than of four.
"""

import dataclasses
from collections.abc import Sequence
from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np

from effarch.ops.platform import platform
from effarch.ops.precision import dot, dot_nt, dot_tn
from effarch.typing import Array, Bool, Float, Int

_BLOCK = {"cpu": 1}  # tokens of a block; elsewhere 16: an accelerator would rather do more work than more steps
Where = Literal["after", "strict", "before"]
Queries = Sequence[tuple[Array, Where]]


@dataclasses.dataclass(frozen=True)
class Masks:
    """Who sees whom inside a chunk, by run equality; None where no document ends and no token is padding.

    Attributes:
      pair: ``[*Z, C, C]`` same run, both real.
      into: ``[*Z, C, 1]`` the token belongs to the run of the state at the chunk's start.
      out: ``[*Z, C, 1]`` the token belongs to the run of the state at the chunk's end.
      keep: ``[*Z, 1, 1]`` the two runs are the same.
    """

    pair: Bool[Array, "*Z C C"]
    into: Bool[Array, "*Z C 1"]
    out: Bool[Array, "*Z C 1"]
    keep: Bool[Array, "*Z 1 1"]

    @classmethod
    def of(cls, run: Int[Array, "B C"], carried: Int[Array, " B"], groups: tuple[int, int]) -> "Masks":
        """From run indices (0: padding) and the run of the state at the chunk's start."""
        last = jnp.maximum(run.max(axis=1), carried)
        real = run > 0
        pair = (run[:, :, None] == run[:, None, :]) & real[:, :, None]
        into = real & (run == carried[:, None])
        out = real & (run == last[:, None])
        return cls(
            pair=for_heads(pair, groups),
            into=for_heads(into[:, :, None], groups),
            out=for_heads(out[:, :, None], groups),
            keep=for_heads((last == carried)[:, None, None], groups),
        )


def for_heads(x: Array, groups: tuple[int, int]) -> Array:
    """``[B, ...]`` to ``[*Z, ...]``: what all heads of a row share."""
    count, each = groups
    x = jnp.broadcast_to(x[:, None], (x.shape[0], count, *x.shape[1:])).reshape(-1, *x.shape[1:])
    return x if each == 1 else x[:, None]


def _where(mask: Array, x: Array) -> Array:
    return jnp.where(mask, x, jnp.zeros((), x.dtype))


def _kept(masks: Masks | None, which: Literal["into", "out", "keep"], x: Array) -> Array:
    """``x`` where the mask of that name is set, 0 elsewhere; ``x`` itself without masks."""
    return x if masks is None else _where(getattr(masks, which), x)


def _earlier(x: Array) -> Array:
    """Row i of the last axis but one becomes row i - 1, the first zero."""
    pad = [(0, 0)] * (x.ndim - 2) + [(1, 0), (0, 0)]
    return jnp.pad(x[..., :-1, :], pad)


def _later(x: Array) -> Array:
    """Row i becomes row i + 1, the last zero."""
    pad = [(0, 0)] * (x.ndim - 2) + [(0, 1), (0, 0)]
    return jnp.pad(x[..., 1:, :], pad)


def _tril(size: int, strict: bool = False, dims: int = 2) -> np.ndarray:
    return np.tril(np.ones((1,) * (dims - 2) + (size, size), bool), -1 if strict else 0)


def _triangle(scores: Array, masks: Masks | None, strict: bool) -> Array:
    """Scores of j <= i (j < i if strict) that see each other."""
    mask = jnp.asarray(_tril(scores.shape[-1], strict, scores.ndim))
    return _where(mask if masks is None else mask & masks.pair, scores)


def _by_matrix(x: Array, matrix: np.ndarray) -> Array:
    """Sums of ``x`` by a 0/1 matrix: quicker than cumulative sums on every platform, and as exact."""
    return jnp.matmul(x, jnp.asarray(matrix, x.dtype), precision=jax.lax.Precision.HIGHEST)


def prefix_sums(x: Float[Array, "... C"]) -> Float[Array, "... C"]:
    """``y[i] = sum of x over l <= i``."""
    return _by_matrix(x, _tril(x.shape[-1]).T)


def segment_decays(log_decay: Float[Array, "... C"]) -> Float[Array, "... C C"]:
    """``y[i, j] = exp(sum of log-decays over j < l <= i)`` for a power of two C; not to be read above the diagonal.

    In pieces of about sqrt(C) tokens: inside a piece the sums are formed by a 0/1 matrix; from a piece to another the
    decay is that of the rest of the one, times that of the whole pieces between and the start of the other.
    """
    size = log_decay.shape[-1]
    piece = 1 << (size.bit_length() // 2)
    count = size // piece
    parts = log_decay.reshape(-1, count, piece)

    def sums(x: Array, n: int, end: int) -> Array:  # over j < k < i + end: [..., n * n]
        i, j, k = np.ogrid[:n, :n, :n]
        return _by_matrix(x, ((j < k) & (k < i + end)).reshape(n * n, n).T)

    inside = jnp.exp(sums(parts, piece, 1)).reshape(-1, count, piece, piece)
    start = prefix_sums(parts)
    whole = sums(start[..., -1], count, 0).reshape(-1, count, 1, count)
    before = jnp.exp(start[..., None] + whole).reshape(-1, size, count, 1)  # up to i from the end of an earlier piece
    same = (np.arange(size) // piece)[:, None] == np.arange(count)
    factors = jnp.where(same[None, :, :, None], inside.reshape(-1, size, 1, piece), before * inside[:, None, :, -1])
    return factors.reshape(*log_decay.shape, size)


@dataclasses.dataclass(frozen=True)
class _FromStart:
    """What any decay does to the state at the chunk's start.

    Attributes:
      start: ``[*Z, C, 1 or K]`` product of the decays up to and with i. masks: runs of the chunk, or None.
    """

    start: Array
    masks: Masks | None

    def read(self, x: Array, state: Array, where: Where = "after") -> Array:
        """``x_i`` read from the state at the chunk's start, decayed up to i (before i's own decay if "before")."""
        start = self.start
        if where == "before":
            start = jnp.concatenate([jnp.ones_like(start[..., :1, :]), start[..., :-1, :]], axis=-2)
        return dot(_kept(self.masks, "into", x.astype(state.dtype) * start), state)

    def carry(self, state: Array) -> Array:
        """The state at the chunk's start, decayed to its end."""
        return _kept(self.masks, "keep", state * jnp.swapaxes(self.start[..., -1:, :], -1, -2))


@dataclasses.dataclass(frozen=True)
class HeadDecay(_FromStart):
    """One decay per head and token (classes 0 and 1; scalar delta): a C x C matrix of factors.

    Attributes:
      between: ``[*Z, C, C]`` product of the decays after j up to i; its upper triangle is not read.
      end: ``[*Z, C, 1]`` product of the decays after i.
    """

    between: Array
    end: Array

    @classmethod
    def per_token(cls, log_decay: Float[Array, "*Z C"], masks: Masks | None) -> "HeadDecay":
        """From natural-log decays, 0 at padding."""
        between = segment_decays(log_decay)
        start = jnp.exp(prefix_sums(log_decay))[..., None]
        return cls(start, masks, between, between[..., -1, :, None])

    @classmethod
    def constant(cls, log_decay: Float[Array, "*Z"], real: Bool[Array, "*Z C"], masks: Masks | None) -> "HeadDecay":
        """From one natural-log decay per head; padding does not advance the clock. Distances are exact integers."""
        log_decay = log_decay[..., None]
        clock = jnp.cumsum(real.astype(jnp.int32), axis=-1, dtype=jnp.int32)
        steps = jnp.where(_tril(real.shape[-1], dims=clock.ndim + 1), clock[..., :, None] - clock[..., None, :], 0)
        dtype = log_decay.dtype
        between = jnp.exp(log_decay[..., None] * steps.astype(dtype))
        start = jnp.exp(log_decay * clock.astype(dtype))[..., None]
        end = jnp.exp(log_decay * (clock[..., -1:] - clock).astype(dtype))[..., None]
        return cls(start, masks, between, end)

    def pairs(self, xs: Queries, ys: Sequence[Array]) -> list[list[Array]]:
        """``<x_i, y_j>`` decayed from j to i, for j <= i and every x and y.

        Args:
          xs: with where each reads: "after" this token's write (j <= i), "strict" after its decay but before its write
            (j < i), "before" both (j < i, i's own decay left out).
          ys: what is read.
        """
        scores = []
        for x, where in xs:
            between = _earlier(self.between) if where == "before" else self.between
            scores.append([_triangle(dot_nt(x, y) * between, self.masks, where != "after") for y in ys])
        return scores

    def write(self, y: Array, values: Array) -> Array:
        """What the chunk adds to the state at its end: ``sum_j y_j values_j^T`` decayed from j."""
        values = _kept(self.masks, "out", values.astype(self.end.dtype) * self.end)
        return dot_tn(y.astype(values.dtype), values)


@dataclasses.dataclass(frozen=True)
class ChannelDecay(_FromStart):
    """One decay per key channel and token (class 2; KDA; RWKV-7). Same methods as :class:`HeadDecay`.

    e^(-g) over a whole chunk overflows, so pairs are formed by halves: between the halves of a run of tokens, ``x`` is
    decayed from the middle and ``y`` up to it, one matrix product; then inside each half, down to blocks of few tokens
    whose pairs are formed one by one. The factors of a run are those of its halves times the whole of the other half.

    Attributes:
      inside: ``[Z C / s, s, s, K]`` from token j (third axis) to i (second) of a block of s tokens.
      halves: for runs of 2, 4, ... C tokens, with N = Z C / 2s for halves of s: ``[N, s, K]`` from the middle up to and
        with the token, for second halves; ``[N, s, K]`` after the token up to the middle, for first halves.
      end: ``[*Z, C, K]`` product of the decays after i.
    """

    inside: Array
    halves: tuple[tuple[Array, Array], ...]
    end: Array

    @classmethod
    def per_token(cls, log_decay: Float[Array, "*Z C K"], masks: Masks | None) -> "ChannelDecay":
        """From natural-log decays, 0 at padding."""
        shape = log_decay.shape
        size, width = shape[-2:]
        half = min(_BLOCK.get(platform(), 16), size)
        parts = log_decay.reshape(-1, half, width)
        i, j, k = np.ogrid[:half, -1:half, :half]  # j = -1: from before the block
        matrix = jnp.asarray(((j < k) & (k <= i)).reshape(-1, half), parts.dtype)
        sums = dot(jnp.broadcast_to(matrix, (parts.shape[0], *matrix.shape)), parts)
        inside = jnp.exp(sums).reshape(-1, half, half + 1, width)
        start, end, inside = inside[:, :, 0], inside[:, -1, 1:], inside[:, :, 1:]
        halves = []
        while half < size:
            start, end = (x.reshape(-1, 2, half, width) for x in (start, end))
            halves.append((start[:, 1], end[:, 0]))
            first, second = start[:, 0, -1:], start[:, 1, -1:]  # the whole of each
            start = jnp.stack([start[:, 0], start[:, 1] * first], axis=1)
            end = jnp.stack([end[:, 0] * second, end[:, 1]], axis=1)
            half *= 2
        return cls(start.reshape(shape), masks, inside, tuple(halves), end.reshape(shape))

    def pairs(self, xs: Queries, ys: Sequence[Array]) -> list[list[Array]]:
        """As :meth:`HeadDecay.pairs`."""
        mine = self.start.shape[:-2]
        size, width = self.start.shape[-2:]
        lead = jnp.broadcast_shapes(mine, *(x.shape[:-2] for x, _ in xs), *(y.shape[:-2] for y in ys))

        def ready(x: Array) -> Array:  # [Z, C, K]
            return jnp.broadcast_to(x, (*lead, size, width)).astype(self.start.dtype).reshape(-1, size, width)

        def spread(factor: Array) -> Array:  # decays of fewer heads than x and y
            if mine == lead:
                return factor
            rest = factor.shape[1:]
            factor = factor.reshape(*mine, -1, *rest)
            return jnp.broadcast_to(factor, (*lead, *factor.shape[len(lead) :])).reshape(-1, *rest)

        def decayed(arrays: list[Array], which: int, factor: Array) -> Array:  # one half of every run, x by x
            runs, half = factor.shape[:2]
            parts = [x.reshape(runs, 2, half, width)[:, which] * factor for x in arrays]
            return jnp.stack(parts, axis=2).reshape(runs, -1, width)

        # Before i's own decay is up to and with the token before: such rows move up by one, and their scores back.
        queries = [ready(_later(x) if where == "before" else x) for x, where in xs]
        keys = [ready(y) for y in ys]
        inside = spread(self.inside)
        block = inside.shape[1]
        rows = [x.reshape(-1, block, 1, width) for x in queries]
        columns = [y.reshape(-1, 1, block, width) for y in keys]
        own = [jnp.stack([(x * inside * y).sum(axis=-1) for y in columns], axis=-1) for x in rows]
        scores = jnp.stack(own, axis=2)  # [N, s, len(xs), s, len(ys)], then [N, s * len(xs), s * len(ys)] in runs of s
        scores = scores.reshape(-1, block * len(xs), block * len(ys))
        for head, tail in self.halves:
            across = dot_nt(decayed(queries, 1, spread(head)), decayed(keys, 0, spread(tail)))
            within = scores.reshape(-1, 2, *across.shape[1:])
            upper = jnp.concatenate([within[:, 0], jnp.zeros_like(across)], axis=-1)
            scores = jnp.concatenate([upper, jnp.concatenate([across, within[:, 1]], axis=-1)], axis=-2)
        scores = scores.reshape(-1, size, len(xs), size, len(ys))

        def of(a: int, b: int, where: Where) -> Array:
            chosen = scores[:, :, a, :, b].reshape(*lead, size, size)
            return _triangle(_earlier(chosen) if where == "before" else chosen, self.masks, where != "after")

        return [[of(a, b, where) for b in range(len(ys))] for a, (_, where) in enumerate(xs)]

    def write(self, y: Array, values: Array) -> Array:
        """As :meth:`HeadDecay.write`."""
        y = _kept(self.masks, "out", y.astype(self.end.dtype) * self.end)
        return dot_tn(y, values.astype(y.dtype))
