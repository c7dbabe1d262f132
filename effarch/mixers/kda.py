"""Kimi Delta Attention: KDA, of Kimi Linear (2510.26692).

    S_t = (I - b_t k_t k_t^T) Diag(a_t) S_{t-1} + b_t k_t v_t^T        o_t = S_t^T q_t
    log a_t = -e^A softplus(W_2 W_1 x_t + dt) per channel, or, bounded, m sigmoid(e^A (W_2 W_1 x_t + dt))
    y_t = W_o (RMSNorm_head(o_t) * sigmoid(U_2 U_1 x_t + c))

DeltaNet with a decay per key channel and an output gate, both from low-rank maps whose rank is the width of a value
head. The gate has a bias in flash-linear-attention and none in the released Kimi Linear.
"""

from functools import partial
from typing import ClassVar

import jax
import jax.numpy as jnp
import pydantic
from flax import nnx

from effarch.mixers.base import LayerInfo
from effarch.mixers.deltanet import DeltaNet, DeltaNetMixer
from effarch.nn.decay import log_rates, per_head, softplus_decay, step_sizes
from effarch.nn.low_rank import LowRank
from effarch.ops.channels import over_tokens
from effarch.ops.precision import accumulator
from effarch.registry import register
from effarch.typing import Array


@register("kda", kind="mixer")
class KDA(DeltaNet):
    """The delta rule with a decay per key channel and token."""

    paper: ClassVar[str] = "2510.26692 Kimi Linear: An Expressive, Efficient Attention Architecture"

    lower_bound: float | None = pydantic.Field(
        None, lt=0, description="smallest natural-log decay of a token, e.g. -5; null: softplus, without a bound"
    )
    gate_bias: bool = pydantic.Field(True, description="a bias in the output gate")

    def make(self, dim: int, *, layer: LayerInfo, rngs: nnx.Rngs) -> "KDAMixer":
        return KDAMixer(self, dim, layer=layer, rngs=rngs)

    def gates(self, dim: int) -> int:
        rank = self.value_head_dim
        return rank * (2 * dim + self.num_heads * (self.head_dim + self.value_head_dim))


class KDAMixer(DeltaNetMixer):
    """The module; see the file."""

    config: KDA

    def __init__(self, config: KDA, dim: int, *, layer: LayerInfo, rngs: nnx.Rngs) -> None:
        super().__init__(config, dim, layer=layer, rngs=rngs)
        heads, key_dim, value_dim = config.num_heads, config.head_dim, config.value_head_dim
        low_rank = partial(LowRank, dim, value_dim, axes=("heads", "head_dim"), rngs=rngs)
        self.a = low_rank((heads, key_dim))
        bias = jnp.zeros((heads, value_dim), jnp.float32) if config.gate_bias else None
        self.gate = low_rank((heads, value_dim), bias=bias)
        unbounded = config.lower_bound is None
        log_rate = log_rates(rngs, (heads,), smallest=1.0) if unbounded else jnp.zeros((heads,), jnp.float32)
        self.log_rate = nnx.Param(log_rate, axes=("heads",))
        self.dt_bias = nnx.Param(step_sizes(rngs, (heads, key_dim)), axes=("heads", "head_dim"))

    def log_decay(self, x: Array) -> Array:
        y, bound = self.a(x), self.config.lower_bound
        if bound is None:
            return softplus_decay(y, self.log_rate, self.dt_bias)
        y = y.astype(accumulator(y))
        rate = over_tokens(per_head(jnp.exp(self.log_rate[...].astype(y.dtype)), self.dt_bias.shape), y)
        return bound * jax.nn.sigmoid(rate * (y + over_tokens(self.dt_bias[...], y)))

    def gated(self, o: Array, x: Array) -> Array:
        return o * jax.nn.sigmoid(self.gate(x))
