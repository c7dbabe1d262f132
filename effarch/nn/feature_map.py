"""Feature maps as layers: what a linear-attention mixer is given for phi. Those of a paper stand in its mixer's file.

A map is chosen by name, ``feature_map: {type: hedgehog}``; the mathematics is in :mod:`effarch.ops.features`.
"""

from functools import partial
from typing import Annotated, ClassVar, Self

import jax
from flax import nnx

from effarch.config import Config
from effarch.ops.features import Features, elu_plus_one, orthogonal_features
from effarch.registry import Choice, register
from effarch.typing import Array, Float, Int, PRNGKeyArray, PyTree


class FeatureMap(nnx.Module):
    """phi, for the heads of q or of k."""

    def __call__(self, x: Float[Array, "B T H K"], positions: Int[Array, "B T"]) -> Features:
        """Features of queries or keys; ``positions`` are those in each document, B may be 1."""
        raise NotImplementedError(f"{type(self).__name__} has no __call__")


class FeatureMapConfig(Config):
    """Base of the configs registered as ``kind="feature_map"``. No weight phi(q).phi(k) is ever negative.

    Flags:
      shared: one module serves q and k, and knows nothing of heads; else each has its own, with parameters per head.
      paper: arXiv id and title.
    """

    shared: ClassVar[bool] = True
    paper: ClassVar[str] = ""

    @property
    def log_scaled(self) -> bool:
        """Whether features carry a log-scale (maps made of exponentials)."""
        return False

    def make(self, dim: int, heads: int, *, rngs: nnx.Rngs) -> FeatureMap:
        """The module for heads of width ``dim``."""
        raise NotImplementedError(f"{type(self).__name__} has no make")

    def width(self, dim: int) -> int:
        """Features of a head of width ``dim``."""
        return dim

    def flops(self, dim: int) -> int:
        """Floating-point operations for one token and head."""
        return self.width(dim)

    @classmethod
    def tiny(cls) -> Self:
        """The smallest instance that exercises everything: for the tests."""
        return cls()


FeatureMapChoice = Annotated[FeatureMapConfig, Choice("feature_map")]


@register("elu", kind="feature_map")
class ELUConfig(FeatureMapConfig):
    """``elu(x) + 1``."""

    paper: ClassVar[str] = "2006.16236 Transformers are RNNs: Fast Autoregressive Transformers with Linear Attention"

    def make(self, dim: int, heads: int, *, rngs: nnx.Rngs) -> "ELUMap":
        return ELUMap()


class ELUMap(FeatureMap):
    """``elu(x) + 1``."""

    def __call__(self, x: Array, positions: Array) -> Features:
        return Features(elu_plus_one(x))


@register("relu", kind="feature_map")
class ReLUConfig(FeatureMapConfig):
    """``max(x, 0)``."""

    paper: ClassVar[str] = "2009.14794 Rethinking Attention with Performers"

    def make(self, dim: int, heads: int, *, rngs: nnx.Rngs) -> "ReLUMap":
        return ReLUMap()


class ReLUMap(FeatureMap):
    """``max(x, 0)``."""

    def __call__(self, x: Array, positions: Array) -> Features:
        return Features(jax.nn.relu(x))


class RandomDirections(nnx.Variable):
    """Random features ``[M, K]``: saved with the model, never trained."""


def redraw(state: PyTree, key: PRNGKeyArray) -> PyTree:
    """An NNX state (or a module) with every :class:`RandomDirections` drawn anew, all else as it is. Pure.

    Args:
      state: ``nnx.split(model)[1]``, the ``rest`` of a training state, or a module.
      key: the new features depend on it alone.
    """
    found, tree = jax.tree.flatten(state, is_leaf=lambda x: isinstance(x, nnx.Variable))
    places = [i for i, x in enumerate(found) if isinstance(x, RandomDirections)]

    def fresh(variable: RandomDirections, key: PRNGKeyArray) -> nnx.Variable:
        *layers, count, width = variable.shape  # scanned layers are stacked in front
        draw = partial(orthogonal_features, count=count, width=width)
        for _ in layers:
            draw = jax.vmap(draw)
        return variable.replace(draw(jax.random.split(key, tuple(layers))).astype(variable.dtype))

    for i, each in zip(places, jax.random.split(key, len(places)), strict=True):
        found[i] = fresh(found[i], each)
    return jax.tree.unflatten(tree, found)
