"""Projections: linear maps between products of axes, each dimension named."""

import math
from collections.abc import Sequence

import jax
import jax.numpy as jnp
from flax import nnx

from effarch.ops.channels import over_tokens
from effarch.ops.project import project
from effarch.typing import Array, Float


class Linear(nnx.Module):
    """``y[..., *out] = x[..., *in] kernel[*in, *out] (+ bias[*out])``, in the dtype of x.

    Args:
      inputs, outputs: sizes of the axes that are summed over, and of those that are made.
      axes: a logical name (or None) per dimension of the kernel.
      bias: whether there is a bias.
      scale: variance of the normal initialisation times fan-in; 0 starts at zero.
    """

    def __init__(
        self,
        inputs: int | Sequence[int],
        outputs: int | Sequence[int],
        *,
        axes: tuple[str | None, ...],
        bias: bool = False,
        scale: float = 1.0,
        rngs: nnx.Rngs,
    ) -> None:
        inputs = (inputs,) if isinstance(inputs, int) else tuple(inputs)
        outputs = (outputs,) if isinstance(outputs, int) else tuple(outputs)
        if len(axes) != len(inputs) + len(outputs):
            raise ValueError(f"axes: expected {len(inputs) + len(outputs)} names, got {axes}")
        self.contracted = len(inputs)
        std = math.sqrt(scale / math.prod(inputs))
        shape = inputs + outputs
        self.kernel = nnx.Param(std * jax.random.normal(rngs.params(), shape, jnp.float32), axes=axes)
        self.bias = nnx.Param(jnp.zeros(outputs, jnp.float32), axes=axes[len(inputs) :]) if bias else None

    def __call__(self, x: Float[Array, "..."]) -> Float[Array, "..."]:
        y = project(x, self.kernel[...].astype(x.dtype), self.contracted)
        return y if self.bias is None else y + over_tokens(self.bias[...], y)
