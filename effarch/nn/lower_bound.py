"""Forget gates with a lower bound that rises with depth: HGRN (2311.04823), HGRN2 (2404.07904).

    f = b_i + (1 - b_i) sigmoid(x)        b_i = sum of softmax_L(W)_j over 0 < j <= i        layer i of L, W [L, ...]

The first layer forgets freely (b_0 = 0), the last remembers most. W belongs to the model: the first layer with the
mixer holds it, those after it are given the bounds.
"""

import jax
import jax.numpy as jnp
from flax import nnx

from effarch.ops.channels import over_tokens
from effarch.ops.precision import accumulator
from effarch.typing import Array, Float

LIMIT = 80.0  # e^80 and e^-80 are finite in float32: a decay of e^-80 keeps nothing, and so does one of e^-1e4


class LowerBound(nnx.Module):
    """The bound of one layer.

    Args:
      shape: of one layer's bound. axes: a logical name (or None) for each of its dimensions.
      index: of the layer, from 0; may be traced. count: layers of the model.
      first: whether this layer holds the parameter of all layers.
    """

    def __init__(
        self, shape: tuple[int, ...], *, axes: tuple[str | None, ...], index: int | Array, count: int, first: bool
    ) -> None:
        zeros = jnp.zeros((count, *shape), jnp.float32)
        self.weight = nnx.Param(zeros, axes=(None, *axes)) if first else None
        self.index = nnx.Variable(jnp.asarray(index, jnp.int32))

    def __call__(self, bounds: Float[Array, "L ..."] | None) -> tuple[Float[Array, "..."], Float[Array, "L ..."]]:
        """This layer's bound, and those of all layers for the next one.

        Args:
          bounds: of all layers, from the layer before; the first layer makes them.

        Raises:
          ValueError: there are none, and this is not the first layer.
        """
        if self.weight is not None:
            parts = jax.nn.softmax(self.weight[...].astype(accumulator(self.weight[...])), axis=0)
            bounds = jnp.cumsum(parts.at[0].set(0.0), axis=0)  # not minus the first row: its gradient would cancel
        if bounds is None:
            raise ValueError("bounds: expected those that the first layer with this mixer shares, got None")
        return bounds[self.index[...]], bounds


def bounded_forget(x: Float[Array, "B T ..."], bound: Float[Array, "..."]) -> tuple[Array, Array]:
    """``log f`` and ``1 - f`` of ``f = b + (1 - b) sigmoid(x)``, both without cancellation.

    Args:
      x: logits of the gate, in the precision that the results shall have. bound: b, in [0, 1), one per channel.
    """
    x = jnp.clip(x, -LIMIT, LIMIT)
    b = over_tokens(bound, x)
    e = jnp.exp(-jnp.abs(x))  # f = (1 + b e) / (1 + e) for x >= 0, (b + e) / (1 + e) for x < 0
    log_f = jnp.where(x >= 0, jnp.log1p(b * e), jnp.log(b + e)) - jnp.log1p(e)
    return log_f, (1.0 - b) * jax.nn.sigmoid(-x)
