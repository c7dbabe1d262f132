"""Token embeddings; :class:`effarch.nn.head.Head` reads the same table as the output layer."""

import jax
import jax.numpy as jnp
from flax import nnx

from effarch.typing import Array, Float, Int


class Embedding(nnx.Module):
    """A table ``[vocab, D]``.

    Args:
      vocab_size, dim: shape of the table. scale: standard deviation of the normal initialisation.
      axis: logical name of its rows.
    """

    def __init__(
        self, vocab_size: int, dim: int, *, scale: float = 0.02, axis: str | None = "vocab", rngs: nnx.Rngs
    ) -> None:
        table = scale * jax.random.normal(rngs.params(), (vocab_size, dim), jnp.float32)
        self.table = nnx.Param(table, axes=(axis, "embed"))

    def __call__(self, tokens: Int[Array, "B T"], dtype: jnp.dtype) -> Float[Array, "B T D"]:
        """Rows of the table. Ids outside it are the loader's to refuse: here they would be clamped."""
        return self.table[...].astype(dtype)[tokens]
