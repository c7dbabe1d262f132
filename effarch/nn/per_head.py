"""A linear map for each head."""

import jax
import jax.numpy as jnp
from flax import nnx

from effarch.ops.channels import over_tokens
from effarch.typing import Array, Float


class HeadLinear(nnx.Module):
    """``y[..., h, :] = x[..., h, :] kernel[h] (+ bias[h])``, in the dtype of x.

    Args:
      heads: maps. inputs, outputs: widths of a head before and after. bias: whether there is a bias, zeros at first.
    """

    def __init__(self, heads: int, inputs: int, outputs: int, *, bias: bool = False, rngs: nnx.Rngs) -> None:
        kernel = inputs**-0.5 * jax.random.normal(rngs.params(), (heads, inputs, outputs), jnp.float32)
        self.kernel = nnx.Param(kernel, axes=("heads", "head_dim", None))
        self.bias = nnx.Param(jnp.zeros((heads, outputs), jnp.float32), axes=("heads", None)) if bias else None

    def __call__(self, x: Float[Array, "B T H K"]) -> Float[Array, "B T H F"]:
        y = jnp.einsum("bthk,hkf->bthf", x, self.kernel[...].astype(x.dtype))
        return y if self.bias is None else y + over_tokens(self.bias[...], y)
