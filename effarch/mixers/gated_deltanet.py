"""Gated DeltaNet (2412.06464), as in flash-linear-attention, Qwen3-Next and OLMo Hybrid.

    S_t = a_t (I - b_t k_t k_t^T) S_{t-1} + b_t k_t v_t^T        o_t = S_t^T q_t
    log a_t = -e^A softplus(W_a x_t + dt)        b_t = sigmoid(W_b x_t), doubled with negative eigenvalues
    y_t = W_o (RMSNorm_head(o_t) * silu(W_g x_t))

DeltaNet with a decay per value head and an output gate.
"""

from typing import ClassVar

import jax
import pydantic
from flax import nnx

from effarch.mixers.base import LayerInfo
from effarch.mixers.deltanet import DeltaNet, DeltaNetMixer
from effarch.nn.decay import decay_rates, softplus_decay
from effarch.nn.linear import Linear
from effarch.registry import register
from effarch.typing import Array


@register("gated_deltanet", kind="mixer")
class GatedDeltaNet(DeltaNet):
    """The delta rule with a decay per head and token."""

    paper: ClassVar[str] = "2412.06464 Gated Delta Networks: Improving Mamba2 with Delta Rule"

    num_heads: int = pydantic.Field(6, gt=0, description="value heads")
    head_dim: int = pydantic.Field(256, gt=0, description="width of a query or key head")
    value_head_dim: int = pydantic.Field(512, gt=0, description="width of a value head")

    def make(self, dim: int, *, layer: LayerInfo, rngs: nnx.Rngs) -> "GatedDeltaNetMixer":
        return GatedDeltaNetMixer(self, dim, layer=layer, rngs=rngs)

    def gates(self, dim: int) -> int:
        return dim * self.num_heads * (1 + self.value_head_dim)


class GatedDeltaNetMixer(DeltaNetMixer):
    """The module; see the file."""

    def __init__(self, config: GatedDeltaNet, dim: int, *, layer: LayerInfo, rngs: nnx.Rngs) -> None:
        super().__init__(config, dim, layer=layer, rngs=rngs)
        heads = config.num_heads
        self.gate = Linear(dim, (heads, config.value_head_dim), axes=("embed", "heads", "head_dim"), rngs=rngs)
        self.a = Linear(dim, heads, axes=("embed", "heads"), rngs=rngs)
        log_rate, dt = decay_rates(rngs, (heads,))
        self.log_rate = nnx.Param(log_rate, axes=("heads",))
        self.dt_bias = nnx.Param(dt, axes=("heads",))

    def log_decay(self, x: Array) -> Array:
        return softplus_decay(self.a(x), self.log_rate, self.dt_bias)

    def gated(self, o: Array, x: Array) -> Array:
        return o * jax.nn.silu(self.gate(x))
