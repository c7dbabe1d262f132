"""ReBased (2402.10644): Based with a learned quadratic in place of the Taylor polynomial, so that weights can be 0.

    w_ts = (q'_t.k'_s)^2 / K      x' = gamma * LayerNorm(x) + beta      K = 16

K (K + 1) / 2 features, 136 for K = 16. As in flash-linear-attention the norm is over each head, and gamma and beta
are shared by heads, q and k; the authors' code norms all heads together, q and k apart.
"""

from typing import ClassVar

import pydantic
from flax import nnx

from effarch.mixers.linear_attention import LinearAttention
from effarch.nn.feature_map import FeatureMap, FeatureMapChoice, FeatureMapConfig
from effarch.nn.norm import LayerNorm
from effarch.ops.features import Features, second_order
from effarch.ops.precision import accumulator
from effarch.registry import register
from effarch.typing import Array


@register("rebased", kind="feature_map")
class RebasedMapConfig(FeatureMapConfig):
    """Products of two entries of the normed input."""

    paper: ClassVar[str] = "2402.10644 Linear Transformers with Learnable Kernel Functions are Better In-Context Models"

    norm_eps: float = pydantic.Field(1e-5, gt=0, description="of the norm")

    def make(self, dim: int, heads: int, *, rngs: nnx.Rngs) -> "RebasedMap":
        return RebasedMap(self, dim)

    def width(self, dim: int) -> int:
        return dim * (dim + 1) // 2


class RebasedMap(FeatureMap):
    """The map; gamma and beta are those of its norm."""

    def __init__(self, config: RebasedMapConfig, dim: int) -> None:
        self.norm = LayerNorm(dim, eps=config.norm_eps, axes=(None,))

    def __call__(self, x: Array, positions: Array) -> Features:
        wide = self.norm(x).astype(accumulator(x))  # rounded products give negative weights
        return Features(second_order(wide))


@register("rebased", kind="mixer")
class Rebased(LinearAttention):
    """Linear attention with learned quadratic features."""

    paper: ClassVar[str] = RebasedMapConfig.paper

    num_heads: int = pydantic.Field(16, gt=0, description="query heads")
    head_dim: int = pydantic.Field(16, gt=0, description="width of a query or key head, before the feature map")
    feature_map: FeatureMapChoice = pydantic.Field("rebased", validate_default=True, description="phi, for q and k")
