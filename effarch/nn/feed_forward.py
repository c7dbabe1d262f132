"""The gated feed-forward layer (2002.05202)."""

from collections.abc import Callable

import jax
from flax import nnx

from effarch.nn.linear import Linear
from effarch.typing import Array, Float


class GatedMLP(nnx.Module):
    """``W_down (act(W_gate x) * (W_up x))``; with silu: SwiGLU, with gelu: GeGLU.

    Args:
      dim: width of x. hidden: width F of the hidden layer. bias: on all three.
    """

    def __init__(self, dim: int, hidden: int, *, bias: bool = False, rngs: nnx.Rngs) -> None:
        self.gate = Linear(dim, hidden, axes=("embed", "mlp"), bias=bias, rngs=rngs)
        self.up = Linear(dim, hidden, axes=("embed", "mlp"), bias=bias, rngs=rngs)
        self.down = Linear(hidden, dim, axes=("mlp", "embed"), bias=bias, rngs=rngs)

    def __call__(self, x: Float[Array, "... D"], act: Callable[[Array], Array] = jax.nn.silu) -> Float[Array, "... D"]:
        return self.down(act(self.gate(x)) * self.up(x))
