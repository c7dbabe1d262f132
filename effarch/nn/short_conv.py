"""The short causal convolution as a layer: what most linear mixers put on q, k and v."""

import jax
import jax.numpy as jnp
from flax import nnx

from effarch.ops.conv import causal_conv
from effarch.ops.segments import Segments
from effarch.typing import Array, Float


class ShortConv(nnx.Module):
    """Depthwise causal convolution of ``width`` taps (the last is the token itself), then silu.

    Args:
      dim: channels. width: taps. rngs: initialisation, uniform in +-width^-1/2 as torch's Conv1d.
    """

    def __init__(self, dim: int, width: int, *, rngs: nnx.Rngs) -> None:
        bound = width**-0.5
        weight = jax.random.uniform(rngs.params(), (width, dim), jnp.float32, -bound, bound)
        self.weight = nnx.Param(weight, axes=("conv", None))

    def init_state(self, batch_size: int, dtype: jnp.dtype) -> Float[Array, "B W-1 D"]:
        """No token seen yet."""
        width, dim = self.weight.shape
        return jnp.zeros((batch_size, width - 1, dim), dtype)

    def __call__(
        self, x: Float[Array, "B T D"], state: Array | None, segments: Segments | None
    ) -> tuple[Float[Array, "B T D"], Array]:
        """Outputs and the next state."""
        y, state = causal_conv(x, self.weight[...], state=state, segment_ids=segments)
        return jax.nn.silu(y), state

    def vanish(self) -> None:
        """Sets the filters to a delta on the last tap, so that what is left is the silu."""
        self.weight[...] = jnp.zeros_like(self.weight[...]).at[-1].set(1)
