"""Performer (2009.14794): linear attention with positive orthogonal random features (FAVOR+).

    phi(x) = exp(W x' - |x'|^2 / 2) / sqrt(M)      x' = x K^(-1/4)      so that E phi(q).phi(k) = exp(q.k / sqrt(K))

W [M, K] has rows that are orthogonal in blocks of K, each as long as a normal vector. It is drawn once per layer,
shared by heads, q and k, saved with the model and never trained; ``nn.feature_map.redraw`` draws it anew.

Departures: the authors add 1e-6 to features and divide keys by their maximum over the sequence. Here nothing is added,
and keys are held relative to the running maximum of their document, which cancels exactly (``ops.normalised``): causal,
the same in chunks and decoding, and without underflow where keys are long.
"""

from typing import ClassVar, Self

import pydantic
from flax import nnx

from effarch.mixers.linear_attention import LinearAttention
from effarch.nn.feature_map import FeatureMap, FeatureMapChoice, FeatureMapConfig, RandomDirections
from effarch.ops.features import Features, orthogonal_features, positive_random
from effarch.registry import register
from effarch.typing import Array


@register("performer", kind="feature_map")
class PerformerMapConfig(FeatureMapConfig):
    """Positive orthogonal random features of the softmax kernel."""

    paper: ClassVar[str] = "2009.14794 Rethinking Attention with Performers"

    num_features: int = pydantic.Field(256, gt=0, description="random features M; about K log K")

    @property
    def log_scaled(self) -> bool:
        return True

    def make(self, dim: int, heads: int, *, rngs: nnx.Rngs) -> "PerformerMap":
        return PerformerMap(self, dim, rngs=rngs)

    def width(self, dim: int) -> int:
        return self.num_features

    def flops(self, dim: int) -> int:
        return 2 * dim * self.num_features

    @classmethod
    def tiny(cls) -> Self:
        return cls(num_features=6)


class PerformerMap(FeatureMap):
    """The map; its directions are drawn from the seed of the parameters."""

    def __init__(self, config: PerformerMapConfig, dim: int, *, rngs: nnx.Rngs) -> None:
        self.directions = RandomDirections(orthogonal_features(rngs.params(), config.num_features, dim))

    def __call__(self, x: Array, positions: Array) -> Features:
        return positive_random(x, self.directions[...])


@register("performer", kind="mixer")
class Performer(LinearAttention):
    """Linear attention with positive orthogonal random features."""

    transition: ClassVar[str] = "scalar"
    paper: ClassVar[str] = PerformerMapConfig.paper

    feature_map: FeatureMapChoice = pydantic.Field("performer", validate_default=True, description="phi, for q and k")
