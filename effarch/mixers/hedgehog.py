"""Hedgehog (2402.04347): linear attention whose feature map is learned to mimic softmax.

    phi(x) = [softmax(W x + b), softmax(-W x - b)]      W [K, K] per head, for q and for k, the identity at first

``activation``: "softmax" as above (LoLCATs 2410.10254); "joint_softmax" is softmax([2 W x, -2 W x]), as in
flash-linear-attention; "exp" the paper's [exp(W x), exp(-W x)], held with a log-scale per token (``ops.features``).
Twice the head's width.

Departures: LoLCATs raises every feature to at least 1e-12; here a token all of whose weights vanish reads 0.
"""

from typing import ClassVar, Literal, Self

import jax.numpy as jnp
import pydantic
from flax import nnx

from effarch.mixers.linear_attention import LinearAttention
from effarch.nn.block_linear import BlockLinear
from effarch.nn.feature_map import FeatureMap, FeatureMapChoice, FeatureMapConfig
from effarch.ops.features import Features, joint_softmax, signed_exponentials, softmax_pair
from effarch.registry import register
from effarch.typing import Array


@register("hedgehog", kind="feature_map")
class HedgehogMapConfig(FeatureMapConfig):
    """A learned linear map per head and both signs of its exponentials."""

    shared: ClassVar[bool] = False
    paper: ClassVar[str] = "2402.04347 The Hedgehog & the Porcupine: Expressive Linear Attentions with Softmax Mimicry"

    activation: Literal["softmax", "joint_softmax", "exp"] = pydantic.Field("softmax", description="see the file")
    bias: bool = pydantic.Field(False, description="a bias b on W x")

    @property
    def log_scaled(self) -> bool:
        return self.activation == "exp"

    def make(self, dim: int, heads: int, *, rngs: nnx.Rngs) -> "HedgehogMap":
        return HedgehogMap(self, dim, heads, rngs=rngs)

    def width(self, dim: int) -> int:
        return 2 * dim

    def flops(self, dim: int) -> int:
        return 2 * dim * dim

    @classmethod
    def tiny(cls) -> Self:
        return cls(bias=True)


class HedgehogMap(FeatureMap):
    """The map of one layer's queries, or of its keys."""

    def __init__(self, config: HedgehogMapConfig, dim: int, heads: int, *, rngs: nnx.Rngs) -> None:
        self.activation = config.activation
        self.linear = BlockLinear(heads, dim, dim, bias=config.bias, rngs=rngs)
        self.linear.kernel[...] = jnp.broadcast_to(jnp.eye(dim, dtype=jnp.float32)[None], (heads, dim, dim))

    def __call__(self, x: Array, positions: Array) -> Features:
        y = self.linear(x)
        if self.activation == "exp":
            return signed_exponentials(y)
        return Features(softmax_pair(y) if self.activation == "softmax" else joint_softmax(y))


@register("hedgehog", kind="mixer")
class Hedgehog(LinearAttention):
    """Linear attention with a learned feature map that mimics softmax."""

    paper: ClassVar[str] = HedgehogMapConfig.paper

    feature_map: FeatureMapChoice = pydantic.Field("hedgehog", validate_default=True, description="phi, for q and k")
