"""T2R (2103.13076): a softmax Transformer turned into linear attention by a small learned feature map, and finetuned.

    phi(x) = relu(W x + b)      W [F, K] per head, for q and for k

Nothing tells the map apart from the projections before it after training: they may be multiplied out, W W_q.
"""

from typing import ClassVar, Self

import jax
import pydantic
from flax import nnx

from effarch.mixers.linear_attention import LinearAttention
from effarch.nn.feature_map import FeatureMap, FeatureMapChoice, FeatureMapConfig
from effarch.nn.per_head import HeadLinear
from effarch.ops.features import Features
from effarch.registry import register
from effarch.typing import Array


@register("t2r", kind="feature_map")
class T2RMapConfig(FeatureMapConfig):
    """One learned layer with ReLU per head."""

    shared: ClassVar[bool] = False
    paper: ClassVar[str] = "2103.13076 Finetuning Pretrained Transformers into RNNs"

    num_features: int = pydantic.Field(32, gt=0, description="features F of a head")
    bias: bool = pydantic.Field(True, description="a bias b on W x")

    def make(self, dim: int, heads: int, *, rngs: nnx.Rngs) -> "T2RMap":
        return T2RMap(self, dim, heads, rngs=rngs)

    def width(self, dim: int) -> int:
        return self.num_features

    def flops(self, dim: int) -> int:
        return 2 * dim * self.num_features

    @classmethod
    def tiny(cls) -> Self:
        return cls(num_features=6)


class T2RMap(FeatureMap):
    """The map of one layer's queries, or of its keys."""

    def __init__(self, config: T2RMapConfig, dim: int, heads: int, *, rngs: nnx.Rngs) -> None:
        self.linear = HeadLinear(heads, dim, config.num_features, bias=config.bias, rngs=rngs)

    def __call__(self, x: Array, positions: Array) -> Features:
        return Features(jax.nn.relu(self.linear(x)))


@register("t2r", kind="mixer")
class T2R(LinearAttention):
    """Linear attention with a learned ReLU feature map."""

    paper: ClassVar[str] = T2RMapConfig.paper

    feature_map: FeatureMapChoice = pydantic.Field("t2r", validate_default=True, description="phi, for q and k")
