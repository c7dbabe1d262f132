"""Norms, computed in float32 (or wider), returned in the dtype of the input."""

import jax
import jax.numpy as jnp
from flax import nnx

from effarch.ops.channels import over_tokens
from effarch.ops.precision import accumulator
from effarch.typing import Array, Float


def l2_normalise(x: Float[Array, "... K"], eps: float = 1e-6) -> Float[Array, "... K"]:
    """``x / sqrt(x.x + eps)`` over the last axis, as delta-rule models do."""
    wide = x.astype(accumulator(x))
    return (wide * jax.lax.rsqrt((wide * wide).sum(axis=-1, keepdims=True) + eps)).astype(x.dtype)


def unit_vector(x: Float[Array, "... K"], eps: float = 1e-12) -> Float[Array, "... K"]:
    """``x / max(|x|, eps)`` over the last axis, with finite gradients at 0 (RWKV-7)."""
    wide = x.astype(accumulator(x))
    square = jnp.maximum((wide * wide).sum(axis=-1, keepdims=True), jnp.asarray(eps * eps, wide.dtype))
    return (wide * jax.lax.rsqrt(square)).astype(x.dtype)


def _affine(y: Array, weight: nnx.Param | None, bias: nnx.Param | None) -> Array:
    for parameter, apply in ((weight, jnp.multiply), (bias, jnp.add)):
        if parameter is not None:
            y = apply(y, over_tokens(parameter[...], y))
    return y


class RMSNorm(nnx.Module):
    """``x / sqrt(mean(x^2) + eps) * weight`` over the last axis (1910.07467).

    With ``heads`` the input is ``[..., H, V]``: each head has its own mean and weights. With ``plus_one`` it multiplies
    by ``1 + weight``, and weights start at 0 (Gemma, Griffin, Qwen3-Next).
    """

    def __init__(
        self,
        dim: int,
        *,
        heads: int | None = None,
        eps: float = 1e-6,
        plus_one: bool = False,
        axes: tuple[str | None, ...] = ("embed",),
    ) -> None:
        self.eps = eps
        self.plus_one = plus_one
        start = jnp.zeros if plus_one else jnp.ones
        self.weight = nnx.Param(start((dim,) if heads is None else (heads, dim), jnp.float32), axes=axes)

    def __call__(self, x: Float[Array, "... D"]) -> Float[Array, "... D"]:
        y = x.astype(accumulator(x))
        y = y * jax.lax.rsqrt(jnp.mean(y * y, axis=-1, keepdims=True) + self.eps)
        if self.plus_one:  # the sum in y's wide dtype: in bf16 it would round the weight away
            return (y + y * over_tokens(self.weight[...], y)).astype(x.dtype)
        return _affine(y, self.weight, None).astype(x.dtype)


class LayerNorm(nnx.Module):
    """``(x - mean) / sqrt(var + eps) * weight + bias`` over the last axis (1607.06450).

    With ``heads`` the input is ``[..., H, V]``: each head has its own statistics and affine (GroupNorm with H groups).
    Without ``bias`` there is a weight only.
    """

    def __init__(
        self,
        dim: int,
        *,
        heads: int | None = None,
        bias: bool = True,
        eps: float = 1e-5,
        axes: tuple[str | None, ...] = ("embed",),
    ) -> None:
        self.eps = eps
        shape = (dim,) if heads is None else (heads, dim)
        self.weight = nnx.Param(jnp.ones(shape, jnp.float32), axes=axes)
        self.bias = nnx.Param(jnp.zeros(shape, jnp.float32), axes=axes) if bias else None

    def __call__(self, x: Float[Array, "... D"]) -> Float[Array, "... D"]:
        y = x.astype(accumulator(x))
        y = y - y.mean(axis=-1, keepdims=True)
        y = y * jax.lax.rsqrt(jnp.mean(y * y, axis=-1, keepdims=True) + self.eps)
        return _affine(y, self.weight, self.bias).astype(x.dtype)


class Affine(nnx.Module):
    """``x * weight + bias`` over the last axis: what ResMLP (2105.03404) has in place of a norm."""

    def __init__(self, dim: int, *, axes: tuple[str | None] = ("embed",)) -> None:
        self.weight = nnx.Param(jnp.ones((dim,), jnp.float32), axes=axes)
        self.bias = nnx.Param(jnp.zeros((dim,), jnp.float32), axes=axes)

    def __call__(self, x: Float[Array, "... D"]) -> Float[Array, "... D"]:
        return _affine(x, self.weight, self.bias)
