"""The two-layer perceptron of Transformers (1706.03762) and of the MLP architectures, over channels or over tokens."""

import jax
from flax import nnx

from effarch.nn.linear import Linear
from effarch.typing import Array, Float


class MLP(nnx.Module):
    """``W_2 gelu(W_1 x + b_1) + b_2`` over the last axis.

    Args:
      dim: width of that axis. hidden: width F of the hidden layer.
      axis: logical name of the last axis; None for tokens, whose weights are never split.
      approximate: gelu in its tanh form; else with erf (1606.08415).
      activation: "gelu" or "relu".
    """

    def __init__(
        self,
        dim: int,
        hidden: int,
        *,
        axis: str | None = "embed",
        approximate: bool = True,
        activation: str = "gelu",
        rngs: nnx.Rngs,
    ) -> None:
        self.approximate = approximate
        self.activation = activation
        self.up = Linear(dim, hidden, axes=(axis, "mlp"), bias=True, rngs=rngs)
        self.down = Linear(hidden, dim, axes=("mlp", axis), bias=True, rngs=rngs)

    def __call__(self, x: Float[Array, "... D"]) -> Float[Array, "... D"]:
        y = self.up(x)
        return self.down(jax.nn.relu(y) if self.activation == "relu" else jax.nn.gelu(y, approximate=self.approximate))
