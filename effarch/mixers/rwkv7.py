"""RWKV-7 "Goose" (2503.14456): the time mix.

    S_t = (Diag(w_t) - (eta_t * kk_t) kk_t^T) S_{t-1} + k~_t v_t^T        o_t = S_t^T r_t
    log w = -e^(-1/2) sigmoid(w0 + tanh(x_w W1) W2)      kk = k * xi / |k * xi|      k~ = k * (1 + (eta - 1) * alpha)
    eta = sigmoid(a0 + x_a A1 A2)        gate = sigmoid(x_g G1) G2        v <- v + (v_first - v) sigmoid(v0 + x_v V1 V2)
    y_t = W_o ((GroupNorm(o_t) + (r_t . (k~_t * r_k)) v_t) * gate_t)

Each input is a lerp of x_t and x_{t-1}. v is mixed with the first layer's value, which crosses layers in the context as
``value_first``; the first layer has no parameters for that. Names follow the equations of the paper; q is not scaled.
Initial values are those of the authors' training code, its orthogonal matrices replaced by normal ones of equal size.
"""

import math
from typing import ClassVar, Self

import jax
import jax.numpy as jnp
import pydantic
from flax import nnx

from effarch.mixers.base import Context, LayerInfo
from effarch.mixers.time_mix import PER_HEAD, TimeMix, TimeMixConfig, ramp
from effarch.nn.lerp import Lerps, curve
from effarch.nn.low_rank import LowRank
from effarch.nn.norm import unit_vector
from effarch.ops.channels import over_tokens
from effarch.ops.conv import token_shift
from effarch.ops.precision import accumulator
from effarch.ops.recurrence import DiagonalPlusRankOne, linear_recurrence
from effarch.registry import register
from effarch.typing import Array

_LERPS = {"r": 0.2, "w": 0.9, "k": 0.7, "v": 0.7, "a": 0.9, "g": 0.2}  # exponent of the initial curve


@register("rwkv7", kind="mixer")
class RWKV7(TimeMixConfig):
    """A decay per channel and token, and a delta rule whose removal and write have rates of their own."""

    context_parallel: ClassVar[bool] = True
    transition: ClassVar[str] = "diagonal plus rank one"
    paper: ClassVar[str] = '2503.14456 RWKV-7 "Goose" with Expressive Dynamic State Evolution'

    rank_w: int = pydantic.Field(64, gt=0, description="rank of the decay's low-rank map")
    rank_a: int = pydantic.Field(64, gt=0, description="rank of the in-context rate's")
    rank_v: int = pydantic.Field(32, gt=0, description="rank of the value residual's")
    rank_g: int = pydantic.Field(128, gt=0, description="rank of the gate's")

    def make(self, dim: int, *, layer: LayerInfo, rngs: nnx.Rngs) -> "RWKV7Mixer":
        return RWKV7Mixer(self, dim, layer=layer, rngs=rngs)

    def flops(self, dim: int, time: int) -> int:
        ranks = self.rank_w + self.rank_a + self.rank_v + self.rank_g
        projections = 8 * dim * self.width + 2 * ranks * (dim + self.width)
        return time * projections + self.recurrence_flops("rank_one", time)

    @classmethod
    def tiny(cls) -> tuple[Self, int]:
        return cls(num_heads=4, head_dim=8, rank_w=4, rank_a=4, rank_v=4, rank_g=8), 32


class RWKV7Mixer(TimeMix):
    """The module; see the file. Its state: S [B, H, K, V] float32, and the last input [B, D]."""

    def __init__(self, config: RWKV7, dim: int, *, layer: LayerInfo, rngs: nnx.Rngs) -> None:
        rest = 1.0 - layer.index / layer.count
        mix = Lerps({name: curve(dim, power * rest) for name, power in _LERPS.items()})
        super().__init__(config, dim, mix, layer=layer, rngs=rngs)
        shape = config.num_heads, config.head_dim
        channel = ramp(*shape)
        inside = jnp.linspace(-1.0, 1.0, config.head_dim)[None]  # over the channels of a head
        bend = jnp.broadcast_to(inside * jnp.abs(inside), shape)
        speed = -5.5 + 6.0 * channel ** (1.0 + jnp.asarray(layer.depth, jnp.float32) ** 0.3) + 2.5 * bend

        def low_rank(rank: int, bias: Array | None = None) -> LowRank:
            scales = (0.0, 0.01 * rank / config.width)
            return LowRank(dim, rank, shape, axes=PER_HEAD, bias=bias, scales=scales, rngs=rngs)

        self.w = low_rank(config.rank_w, bias=speed)
        self.a = low_rank(config.rank_a, bias=-0.19 + 0.3 * bend + 0.4 * (channel - 0.5))
        self.g = low_rank(config.rank_g)
        self.value = None if layer.first else low_rank(config.rank_v, bias=0.73 - 0.4 * (channel - 0.5))
        self.xi = nnx.Param(0.71 - 0.1 * (channel - 0.5), axes=PER_HEAD)
        self.alpha = nnx.Param(jnp.full(shape, 1.02, jnp.float32), axes=PER_HEAD)
        self.bonus = nnx.Param(jnp.full(shape, -0.04, jnp.float32), axes=PER_HEAD)
        self.norm = self.head_norm(layer)

    def _value(self, x: Array, ctx: Context) -> tuple[Array, Context]:
        v = self.v(x)
        if self.value is None:  # the first layer
            return v, ctx.share(value_first=v)
        return v + (ctx.shared["value_first"] - v) * jax.nn.sigmoid(self.value(x)), ctx

    def __call__(self, x: Array, state: tuple | None, ctx: Context) -> tuple[Array, tuple | None, Context]:
        s, last = (None, None) if state is None else state
        previous, last = token_shift(x, state=last, segment_ids=ctx.segments)
        mixed = self.mix(x, previous)
        r, k = self.r(mixed["r"]), self.k(mixed["k"])
        v, ctx = self._value(mixed["v"], ctx)
        speed = self.w(mixed["w"], jnp.tanh).astype(accumulator(x))
        log_decay = -math.exp(-0.5) * jax.nn.sigmoid(speed)
        rate = jax.nn.sigmoid(self.a(mixed["a"]))
        gate = self.g(mixed["g"], jax.nn.sigmoid)

        removed = unit_vector(k * over_tokens(self.xi[...], k))
        k = k * (1.0 + (rate - 1.0) * over_tokens(self.alpha[...], k))
        transition = DiagonalPlusRankOne(log_decay, p=-rate * removed, r=removed)
        o, s = linear_recurrence(r, k, v, transition=transition, state=s, segment_ids=ctx.segments, form=ctx.form)
        bonus = (r * k * over_tokens(self.bonus[...], k)).sum(axis=-1, keepdims=True) * v
        y = self.o((self.norm(o) + bonus) * gate)
        return y, None if state is None else (s, last), ctx
