"""What is measured: a function that compiles, how its inputs are drawn, and what it should cost."""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from effarch.typing import Array, PyTree


@dataclasses.dataclass(frozen=True)
class Program:
    """One call of what is measured.

    Attributes:
      run: goes under ``jax.jit``.
      arguments: inputs drawn with a key; under ``jax.eval_shape``, their shapes.
      tokens: that one call reads or writes, all rows together.
      flops: useful ones, counted by us (a multiply-add is two); None where nobody has counted.
      state_bytes: carried from token to token per row, all layers; None where nothing is.
      donated: numbers of the arguments whose memory results may take.
      rounds: how often the arguments are read: once, or for every token that is decoded.
    """

    run: Callable[..., PyTree]
    arguments: Callable[[Array], tuple[PyTree, ...]]
    tokens: int
    flops: int | None = None
    state_bytes: int | None = None
    donated: tuple[int, ...] = ()
    rounds: int = 1

    def shapes(self) -> tuple[PyTree, ...]:
        """The shapes of the arguments."""
        return jax.eval_shape(self.arguments, jax.random.key(0))

    @property
    def bytes(self) -> int:
        """The least that any implementation moves: arguments read in every round, results written once."""
        given = self.shapes()
        return self.rounds * tree_bytes(given) + tree_bytes(jax.eval_shape(self.run, *given))


def filled(key: Array, make: Callable[[], PyTree], read: int) -> PyTree:
    """A state as ``make`` builds it, with ``read`` tokens read: its counters say so, its other numbers are random.

    Speed does not depend on those.
    """
    leaves, tree = jax.tree.flatten(jax.eval_shape(make))

    def fill(key: Array, leaf: jax.ShapeDtypeStruct) -> Array:
        if jnp.issubdtype(leaf.dtype, jnp.integer):
            return jnp.full(leaf.shape, read, leaf.dtype)  # every counter counts tokens
        return 0.1 * jax.random.normal(key, leaf.shape, leaf.dtype)

    keys = jax.random.split(key, len(leaves))
    return jax.tree.unflatten(tree, [fill(k, x) for k, x in zip(keys, leaves, strict=True)])


def tree_bytes(tree: Any) -> int:
    """Bytes of all arrays of a tree, abstract or not."""
    return sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(tree))


def gradient_of(forward: Callable[..., Array], count: int) -> Callable[..., tuple[PyTree, ...]]:
    """Forward and backward: the gradients of ``sum(forward(*arguments) * weight)`` for the first ``count`` arguments.

    The weight is one more argument, the last, of the shape of the outputs: as if a model went on from here.
    """

    def loss(*arguments: Any) -> Array:
        *given, weight = arguments
        return (forward(*given) * weight).astype(weight.dtype).sum(dtype="float32")

    return jax.grad(loss, argnums=tuple(range(count)))
