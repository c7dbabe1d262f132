"""DeltaProduct and Gated DeltaProduct (2502.10297), as in flash-linear-attention: several delta steps per token.

    S_t = (I - b_n k_n k_n^T) (... (I - b_1 k_1 k_1^T) a_t S_{t-1} + b_1 k_1 v_1^T ...) + b_n k_n v_n^T
    o_t = S_t^T q_t

DeltaNet, or Gated DeltaNet, with n keys, values and write strengths per token: A_t is a product of n generalised
Householder matrices. Write strengths in (0, 2) unless told otherwise. Without a decay, flash-linear-attention keeps the
output gate; we leave it away, as in DeltaNet.
"""

from typing import ClassVar

import pydantic
from flax import nnx

from effarch.mixers.base import LayerInfo, MixerConfig
from effarch.mixers.deltanet import DeltaNet, DeltaNetMixer
from effarch.mixers.gated_deltanet import GatedDeltaNet, GatedDeltaNetMixer
from effarch.ops.delta_product import delta_product
from effarch.registry import register


class SeveralSteps(MixerConfig):
    """What both have beside their base."""

    paper: ClassVar[str] = "2502.10297 DeltaProduct: Improving State-Tracking in Linear RNNs via Householder Products"

    steps: int = pydantic.Field(2, gt=0, description="delta steps n per token")
    negative_eigenvalues: bool = pydantic.Field(True, description="write strengths in (0, 2) instead of (0, 1)")

    @property
    def writes(self) -> tuple[int, ...]:
        """The axis of writes per token."""
        return (self.steps,)


@register("deltaproduct", kind="mixer")
class DeltaProduct(SeveralSteps, DeltaNet):
    """Several delta steps per token, without decay."""

    def make(self, dim: int, *, layer: LayerInfo, rngs: nnx.Rngs) -> "DeltaProductMixer":
        return DeltaProductMixer(self, dim, layer=layer, rngs=rngs)


class DeltaProductMixer(DeltaNetMixer):
    """The module; see the file."""

    recurrence = staticmethod(delta_product)


@register("gated_deltaproduct", kind="mixer")
class GatedDeltaProduct(SeveralSteps, GatedDeltaNet):
    """Several delta steps per token, after a decay per head."""

    def make(self, dim: int, *, layer: LayerInfo, rngs: nnx.Rngs) -> "GatedDeltaProductMixer":
        return GatedDeltaProductMixer(self, dim, layer=layer, rngs=rngs)


class GatedDeltaProductMixer(GatedDeltaNetMixer):
    """The module; see the file."""

    recurrence = staticmethod(delta_product)
