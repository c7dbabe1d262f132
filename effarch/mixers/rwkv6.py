"""RWKV-6 "Finch" (2404.05892): RWKV-5 with decays and token shifts that depend on the token.

    o_t = (S_{t-1} + (u * k_t) v_t^T)^T r_t        S_t = Diag(w_t) S_{t-1} + k_t v_t^T
    w_t = e^(-e^(d_t))        d_t = d + tanh(x_w W_1) W_2
    x_n = x_t + (x_{t-1} - x_t) * (mix_n + tanh(x_0 A_n) B_n)        x_0 = x_t + (x_{t-1} - x_t) * mix_0
    y_t = W_o (GroupNorm(o_t) * silu(W_g x_g))

n is one of r, k, v, w, g. No departures from the released models; flash-linear-attention's layer has half as many key
channels and another eps.
"""

from typing import ClassVar, Self

import jax.numpy as jnp
import pydantic
from flax import nnx

from effarch.mixers.base import LayerInfo
from effarch.mixers.rwkv5 import RWKV5, RWKV5Mixer, initial_mix
from effarch.mixers.time_mix import PER_HEAD, TimeMixConfig
from effarch.nn.lerp import TokenLerps
from effarch.nn.low_rank import LowRank
from effarch.ops.precision import accumulator
from effarch.registry import register
from effarch.typing import Array


@register("rwkv6", kind="mixer")
class RWKV6(TimeMixConfig):
    """A decay per channel and token, a bonus for the token itself."""

    context_parallel: ClassVar[bool] = True
    transition: ClassVar[str] = "diagonal"
    paper: ClassVar[str] = RWKV5.paper

    rank_mix: int = pydantic.Field(32, gt=0, description="rank of the low-rank map of each token shift")
    rank_w: int = pydantic.Field(64, gt=0, description="rank of the decay's low-rank map")

    def make(self, dim: int, *, layer: LayerInfo, rngs: nnx.Rngs) -> "RWKV6Mixer":
        powers = {"w": 1.0, "k": 1.0, "v": 1.0, "r": 0.5, "g": 0.5}
        mixes = {name: initial_mix(name, power, dim, layer) for name, power in powers.items()}
        mix = TokenLerps(mixes, initial_mix("base", 1.0, dim, layer), self.rank_mix, rngs=rngs)
        return RWKV6Mixer(self, dim, mix, layer=layer, rngs=rngs)

    def flops(self, dim: int, time: int) -> int:
        projections = 10 * dim * self.width
        low_rank = 2 * self.rank_w * (dim + self.width) + 20 * self.rank_mix * dim
        return time * (projections + low_rank) + self.recurrence_flops("decay", time)

    @classmethod
    def tiny(cls) -> tuple[Self, int]:
        return cls(num_heads=4, head_dim=8, rank_mix=4, rank_w=4), 32


class RWKV6Mixer(RWKV5Mixer):
    """The module; see the file. Its state: S [B, H, K, V] float32, and the last input [B, D]."""

    config: RWKV6

    def make_decay(self, speed: Array, rngs: nnx.Rngs) -> None:
        rank, shape = self.config.rank_w, speed.shape
        scales = (0.0, rank * 1e-4 / 3)  # the authors' outer map is uniform in +-0.01
        self.w = LowRank(self.dim, rank, shape, axes=PER_HEAD, bias=speed, scales=scales, rngs=rngs)

    def speed(self, mixed: dict[str, Array], k: Array) -> Array:
        return self.w(mixed["w"], jnp.tanh).astype(accumulator(k))
