"""The output layer of a language model as data, so that its logits can be had in slices of the vocabulary."""

import dataclasses
from functools import partial
from typing import Self

import jax
import jax.numpy as jnp

from effarch import axes
from effarch.ops.channels import over_tokens
from effarch.ops.project import project
from effarch.typing import Array, Float


@partial(jax.tree_util.register_dataclass, data_fields=["weight", "bias"], meta_fields=["rows", "cap"])
@dataclasses.dataclass(frozen=True)
class Head:
    """``l_v = x . w_v + b_v`` for every entry v of the vocabulary; with a cap, ``cap tanh(l_v / cap)`` (Gemma 2).

    Attributes:
      weight: ``[vocab, D]`` (an embedding's table) with ``rows``, else ``[D, vocab]`` (the kernel of a projection).
      bias: ``[vocab]``, added before the cap; or None.
      rows: whether the vocabulary is the first axis of the weight.
      cap: of the logits; or None.
    """

    weight: Array
    bias: Array | None = None
    rows: bool = False
    cap: float | None = None

    @property
    def vocab_size(self) -> int:
        """Entries of the vocabulary, or of the slice."""
        return self.weight.shape[0 if self.rows else 1]

    def __call__(self, hidden: Float[Array, "... D"]) -> Float[Array, "... vocab"]:
        """Logits of hidden states, in their dtype."""
        weight = self.weight.astype(hidden.dtype)
        logits = jnp.tensordot(hidden, weight.T, axes=1) if self.rows else project(hidden, weight, 1)
        logits = logits if self.bias is None else logits + over_tokens(self.bias, logits)
        if self.cap is not None:
            cap = jnp.asarray(self.cap, logits.dtype)
            logits = cap * jnp.tanh(logits / cap)
        return logits

    def gathered(self) -> Self:
        """The head with the weights of an entry together on every device, however the rules split "embed"."""
        rules = axes.current()
        if rules is None or not rules.mesh_axes("embed"):
            return self
        names = ("vocab", None) if self.rows else (None, "vocab")
        return dataclasses.replace(self, weight=axes.constrain(self.weight, *names))

    def entries(self, start: Array | int, size: int) -> Self:
        """The head of ``size`` entries from ``start`` on; both inside the vocabulary."""
        axis = 0 if self.rows else 1
        bias = None if self.bias is None else jax.lax.dynamic_slice_in_dim(self.bias, start, size)
        weight = jax.lax.dynamic_slice_in_dim(self.weight, start, size, axis)
        return dataclasses.replace(self, weight=weight, bias=bias)

    def plus(self, start: Array | int, other: Self) -> Self:
        """This head with the weights of ``other``, a slice from ``start`` on, added: how gradients are gathered."""
        size, axis = other.vocab_size, 0 if self.rows else 1
        weight = jax.lax.dynamic_slice_in_dim(self.weight, start, size, axis) + other.weight
        weight = jax.lax.dynamic_update_slice_in_dim(self.weight, weight, start, axis)
        if self.bias is None or other.bias is None:
            return dataclasses.replace(self, weight=weight)
        bias = jax.lax.dynamic_slice_in_dim(self.bias, start, size) + other.bias
        return dataclasses.replace(
            self, weight=weight, bias=jax.lax.dynamic_update_slice_in_dim(self.bias, bias, start, 0)
        )
