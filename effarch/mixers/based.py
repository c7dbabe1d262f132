"""Based (2402.18668): linear attention with the second-order Taylor polynomial of exp, on small queries and keys.

    w_ts = 1 + s + s^2 / 2      s = q_t.k_s / sqrt(K)      K = 16

phi(x) = [1, x K^(-1/4), x_i x_j K^(-1/2) (i < j), x_i^2 (2 K)^(-1/2)]: 1 + K + K (K + 1) / 2 features, 153 for K = 16.
The model alternates these layers with sliding windows (64 tokens; its released models also have gated convolutions).

Departures: products of two different entries stand once, where the authors keep both, 273 features. A teacher's heads
are copied at their own width, with a state that grows with its square (2145 features for K = 64).
"""

from typing import ClassVar

import pydantic
from flax import nnx

from effarch.mixers.linear_attention import LinearAttention
from effarch.nn.feature_map import FeatureMap, FeatureMapChoice, FeatureMapConfig
from effarch.ops.features import Features, taylor
from effarch.registry import register
from effarch.typing import Array


@register("taylor", kind="feature_map")
class TaylorMapConfig(FeatureMapConfig):
    """The second-order Taylor polynomial of exp."""

    paper: ClassVar[str] = "2402.18668 Simple linear attention language models balance the recall-throughput tradeoff"

    def make(self, dim: int, heads: int, *, rngs: nnx.Rngs) -> "TaylorMap":
        return TaylorMap()

    def width(self, dim: int) -> int:
        return 1 + dim + dim * (dim + 1) // 2


class TaylorMap(FeatureMap):
    """The map; no parameters."""

    def __call__(self, x: Array, positions: Array) -> Features:
        return Features(taylor(x))


@register("based", kind="mixer")
class Based(LinearAttention):
    """Linear attention with Taylor features."""

    paper: ClassVar[str] = TaylorMapConfig.paper

    num_heads: int = pydantic.Field(16, gt=0, description="query heads")
    head_dim: int = pydantic.Field(16, gt=0, description="width of a query or key head, before the feature map")
    feature_map: FeatureMapChoice = pydantic.Field("taylor", validate_default=True, description="phi, for q and k")
