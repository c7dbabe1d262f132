"""The gated feed-forward layer (2002.05202)."""

import jax
from flax import nnx

from effarch.nn.linear import Linear
from effarch.typing import Array, Float


class GatedMLP(nnx.Module):
    """``W_down (silu(W_gate x) * (W_up x))``: SwiGLU.

    Args:
      dim: width of x. hidden: width F of the hidden layer.
    """

    def __init__(self, dim: int, hidden: int, *, rngs: nnx.Rngs) -> None:
        self.gate = Linear(dim, hidden, axes=("embed", "mlp"), rngs=rngs)
        self.up = Linear(dim, hidden, axes=("embed", "mlp"), rngs=rngs)
        self.down = Linear(hidden, dim, axes=("mlp", "embed"), rngs=rngs)

    def __call__(self, x: Float[Array, "... D"]) -> Float[Array, "... D"]:
        return self.down(jax.nn.silu(self.gate(x)) * self.up(x))
