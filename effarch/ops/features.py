"""Feature maps of linear attention: ``exp(q.k / sqrt(K))`` becomes ``phi(q).phi(k)``. Pure functions of the last axis.

Maps made of exponentials come as a :class:`Features` pair: values scaled by each token's own largest exponent, so that
none overflows, and the logarithm of that scale. Nothing is taken over time here, so that chunks, documents and decoding
agree: a query's scale cancels in a normalised sum, a key's is put back relative to the largest one *so far* by
:func:`effarch.ops.normalised.normalised_attention`, exactly, whatever its size. (Dividing keys by their maximum over
the whole sequence, as is common, lets later tokens move earlier outputs through rounding, and cannot be decoded.)
"""

import math
from typing import NamedTuple

import jax
import jax.numpy as jnp

from effarch.ops.precision import accumulator
from effarch.typing import Array, Float, Int, PRNGKeyArray


class Features(NamedTuple):
    """``phi(x) = values * exp(log_scale)``.

    Attributes:
      values: ``[..., F]``; in 0..1 where there is a scale.
      log_scale: ``[...]`` natural logarithm, without a gradient (it flows through the values); None: 0.
    """

    values: Float[Array, "... F"]
    log_scale: Float[Array, "..."] | None = None

    def whole(self) -> Float[Array, "... F"]:
        """phi(x) itself, which may overflow."""
        if self.log_scale is None:
            return self.values
        return self.values * jnp.exp(self.log_scale)[..., None].astype(self.values.dtype)


def exponentials(exponents: Float[Array, "... F"], dtype: jnp.dtype) -> Features:
    """``exp(exponents)``, scaled; values in ``dtype``."""
    largest = jax.lax.stop_gradient(exponents.max(axis=-1, keepdims=True))
    return Features(jnp.exp(exponents - largest).astype(dtype), largest[..., 0])


def elu_plus_one(x: Float[Array, "... K"]) -> Float[Array, "... K"]:
    """``elu(x) + 1`` (2006.16236): x + 1 for x > 0, else exp(x)."""
    return jnp.where(x > 0, x + 1, jnp.exp(jnp.where(x > 0, 0, x)))  # expm1(x) + 1 rounds small weights to 0


def softmax_pair(x: Float[Array, "... K"]) -> Float[Array, "... 2K"]:
    """``[softmax(x), softmax(-x)]`` (Hedgehog, as LoLCATs 2410.10254 has it)."""
    wide = x.astype(accumulator(x))
    return jnp.concatenate([jax.nn.softmax(wide), jax.nn.softmax(-wide)], axis=-1).astype(x.dtype)


def joint_softmax(x: Float[Array, "... K"]) -> Float[Array, "... 2K"]:
    """``softmax([2x, -2x])``, one softmax over both signs (Hedgehog, as in flash-linear-attention)."""
    wide = 2 * x.astype(accumulator(x))
    return jax.nn.softmax(jnp.concatenate([wide, -wide], axis=-1)).astype(x.dtype)


def signed_exponentials(x: Float[Array, "... K"]) -> Features:
    """``[exp(x), exp(-x)]`` (Hedgehog 2402.04347), scaled."""
    wide = x.astype(accumulator(x))
    return exponentials(jnp.concatenate([wide, -wide], axis=-1), x.dtype)


def second_order(x: Float[Array, "... K"]) -> Float[Array, "... K(K+1)/2"]:
    """The products of two entries, each once, so that ``phi(q).phi(k) = (q.k)^2 / K``.

    Entry i meets entry i + r (mod K) for r up to K / 2: slices only, no gather.
    """
    width = x.shape[-1]
    wide = x.astype(accumulator(x))
    twice = jnp.concatenate([wide, wide], axis=-1)
    parts = [wide * wide]
    for r in range(1, width // 2 + 1):
        count = width // 2 if 2 * r == width else width  # half a turn meets every pair twice
        parts.append(math.sqrt(2) * wide[..., :count] * twice[..., r : r + count])
    return (width**-0.5 * jnp.concatenate(parts, axis=-1)).astype(x.dtype)


def taylor(x: Float[Array, "... K"]) -> Float[Array, "... 1+K+K(K+1)/2"]:
    """``phi(q).phi(k) = 1 + s + s^2 / 2`` with ``s = q.k / sqrt(K)``: exp(s) to second order (Based 2402.18668)."""
    one = jnp.ones_like(x[..., :1])
    return jnp.concatenate([one, x.shape[-1] ** -0.25 * x, math.sqrt(0.5) * second_order(x)], axis=-1)


def cosine(x: Float[Array, "B T H K"], positions: Int[Array, "B T"], length: int) -> Float[Array, "B T H 2K"]:
    """``phi(q_i).phi(k_j) = q.k cos(pi/2 (i - j) / length)`` for features x >= 0 (cosFormer 2202.08791).

    Args:
      x: features, >= 0.
      positions: of each token in its document; B may be 1.
      length: tokens of a quarter turn. Positions beyond it count as ``length``: no weight is ever negative.
    """
    dtype = accumulator(x)
    angle = jnp.minimum(positions, length).astype(dtype)[..., None, None] * (0.5 * math.pi / length)
    wide = x.astype(dtype)
    return jnp.concatenate([wide * jnp.cos(angle), wide * jnp.sin(angle)], axis=-1).astype(x.dtype)


def orthogonal_features(key: PRNGKeyArray, count: int, width: int) -> Float[Array, "M K"]:
    """Random directions ``[count, width]`` for :func:`positive_random`: orthogonal in blocks of ``width`` rows.

    Each row alone is standard normal (a uniform direction, its length that of a normal vector).
    """
    blocks = math.ceil(count / width)
    turn, stretch = jax.random.split(key)
    q, r = jnp.linalg.qr(jax.random.normal(turn, (blocks, width, width), jnp.float32))
    q = q * jnp.sign(jnp.diagonal(r, axis1=-2, axis2=-1))[:, None, :]  # Haar: QR alone prefers some signs
    rows = jnp.swapaxes(q, -1, -2).reshape(blocks * width, width)[:count]
    lengths = jnp.linalg.norm(jax.random.normal(stretch, (count, width), jnp.float32), axis=-1, keepdims=True)
    return rows * lengths


def positive_random(x: Float[Array, "... K"], directions: Float[Array, "M K"]) -> Features:
    """``exp(w.x' - |x'|^2 / 2) / sqrt(M)``, x' = x K^(-1/4), for every direction w (FAVOR+, Performer 2009.14794).

    Over standard normal w, ``E phi(q).phi(k) = exp(q.k / sqrt(K))``.
    """
    count, width = directions.shape
    dtype = accumulator(x, directions)
    scaled = x.astype(dtype) * width**-0.25
    projected = jnp.einsum("...k,mk->...m", scaled, directions.astype(dtype), precision=jax.lax.Precision.HIGHEST)
    half = 0.5 * (scaled * scaled).sum(axis=-1, keepdims=True)
    return exponentials(projected - half - 0.5 * math.log(count), x.dtype)
