"""Block-diagonal linear maps: every head maps its own channels."""

import math

import jax
import jax.numpy as jnp
from flax import nnx

from effarch.ops.channels import over_tokens
from effarch.typing import Array, Float


class BlockLinear(nnx.Module):
    """``y[..., h, o] = sum_i x[..., h, i] kernel[h, i, o] (+ bias[h, o])``, in the dtype of x.

    Args:
      heads: blocks. inputs, outputs: width of a block before and after.
      bias: whether there is a bias. scale: variance of the normal initialisation times fan-in.
    """

    def __init__(
        self, heads: int, inputs: int, outputs: int, *, bias: bool = False, scale: float = 1.0, rngs: nnx.Rngs
    ) -> None:
        kernel = math.sqrt(scale / inputs) * jax.random.normal(rngs.params(), (heads, inputs, outputs), jnp.float32)
        self.kernel = nnx.Param(kernel, axes=("heads", None, "head_dim"))
        self.bias = nnx.Param(jnp.zeros((heads, outputs), jnp.float32), axes=("heads", "head_dim")) if bias else None

    def __call__(self, x: Float[Array, "... H I"]) -> Float[Array, "... H O"]:
        y = jnp.einsum("...hi,hio->...ho", x, self.kernel[...].astype(x.dtype))
        return y if self.bias is None else y + over_tokens(self.bias[...], y)
