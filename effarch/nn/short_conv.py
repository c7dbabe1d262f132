"""The short causal convolution as a layer: what most linear mixers put on q, k and v."""

import itertools
import math
from collections.abc import Sequence

import jax
import jax.numpy as jnp
from flax import nnx

from effarch.ops.conv import causal_conv
from effarch.ops.segments import Segments
from effarch.typing import Array, Float


class ShortConv(nnx.Module):
    """Depthwise causal convolution of ``width`` taps (the last is the token itself), then silu.

    Args:
      dim: channels. width: taps. bias: whether there is a bias, zeros at first. silu: whether silu follows.
      rngs: initialisation, uniform in +-width^-1/2 as torch's Conv1d.
    """

    def __init__(self, dim: int, width: int, *, bias: bool = False, silu: bool = True, rngs: nnx.Rngs) -> None:
        self.silu = silu
        bound = width**-0.5
        weight = jax.random.uniform(rngs.params(), (width, dim), jnp.float32, -bound, bound)
        self.weight = nnx.Param(weight, axes=("conv", None))
        self.bias = nnx.Param(jnp.zeros((dim,), jnp.float32), axes=(None,)) if bias else None

    def init_state(self, batch_size: int, dtype: jnp.dtype) -> Float[Array, "B W-1 D"]:
        """No token seen yet."""
        width, dim = self.weight.shape
        return jnp.zeros((batch_size, width - 1, dim), dtype)

    def __call__(
        self, x: Float[Array, "B T D"], state: Array | None, segments: Segments | None
    ) -> tuple[Float[Array, "B T D"], Array]:
        """Outputs and the next state."""
        (y,), state = self.together([x], state, segments)
        return y, state

    def together(
        self, parts: Sequence[Float[Array, "B T ..."]], state: Array | None, segments: Segments | None
    ) -> tuple[list[Array], Array]:
        """Several inputs, their channels one after the other in the filters and the state.

        Each comes back in its own shape; no array of all channels is made on the way.
        """
        edges = list(itertools.accumulate(math.prod(part.shape[2:]) for part in parts))[:-1]
        weights = jnp.split(self.weight[...], edges, axis=-1)
        biases = [None] * len(parts) if self.bias is None else jnp.split(self.bias[...], edges)
        states = [None] * len(parts) if state is None else jnp.split(state, edges, axis=-1)
        outputs, after = [], []
        for part, weight, bias, before in zip(parts, weights, biases, states, strict=True):
            x = part.reshape(*part.shape[:2], -1)
            y, last = causal_conv(x, weight, bias, state=before, segment_ids=segments)
            outputs.append((jax.nn.silu(y) if self.silu else y).reshape(part.shape))
            after.append(last)
        return outputs, jnp.concatenate(after, axis=-1)

    def vanish(self) -> None:
        """Sets the filters to a delta on the last tap, so that what is left is the silu (where there is one)."""
        self.weight[...] = jnp.zeros_like(self.weight[...]).at[-1].set(1)
        if self.bias is not None:
            self.bias[...] = jnp.zeros_like(self.bias[...])
