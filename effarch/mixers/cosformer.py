"""cosFormer (2202.08791): linear attention with ReLU features and a cosine of the distance.

    w_ij = relu(q_i).relu(k_j) cos(pi/2 (i - j) / M) = phi(q_i, i).phi(k_j, j)
    phi(x, i) = [relu(x) cos(pi i / 2M), relu(x) sin(pi i / 2M)]

Departures: the authors set M to the length of the sequence, which a decoder does not know: here it is a field, and
positions beyond it count as M, so that no weight is ever negative. Positions are those inside the document.
"""

from typing import ClassVar, Self

import jax
import pydantic
from flax import nnx

from effarch.mixers.linear_attention import LinearAttention
from effarch.nn.feature_map import FeatureMap, FeatureMapChoice, FeatureMapConfig
from effarch.ops.features import Features, cosine
from effarch.registry import register
from effarch.typing import Array


@register("cosformer", kind="feature_map")
class CosformerMapConfig(FeatureMapConfig):
    """ReLU features that turn with the position."""

    paper: ClassVar[str] = "2202.08791 cosFormer: Rethinking Softmax in Attention"

    max_length: int = pydantic.Field(2048, gt=0, description="tokens M of a quarter turn; as long as the documents")

    def make(self, dim: int, heads: int, *, rngs: nnx.Rngs) -> "CosformerMap":
        return CosformerMap(self)

    def width(self, dim: int) -> int:
        return 2 * dim

    @classmethod
    def tiny(cls) -> Self:
        return cls(max_length=64)


class CosformerMap(FeatureMap):
    """The map; no parameters."""

    def __init__(self, config: CosformerMapConfig) -> None:
        self.max_length = config.max_length

    def __call__(self, x: Array, positions: Array) -> Features:
        return Features(cosine(jax.nn.relu(x), positions, self.max_length))


@register("cosformer", kind="mixer")
class Cosformer(LinearAttention):
    """Linear attention with ReLU features and a cosine of the distance."""

    paper: ClassVar[str] = CosformerMapConfig.paper

    feature_map: FeatureMapChoice = pydantic.Field("cosformer", validate_default=True, description="phi, for q and k")
