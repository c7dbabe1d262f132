"""RWKV-7 "Goose" (2503.14456): time mix and channel mix.

    S_t = (Diag(w_t) - (eta_t * kk_t) kk_t^T) S_{t-1} + k~_t v_t^T        o_t = S_t^T r_t
    log w = -e^(-1/2) sigmoid(w0 + tanh(x_w W1) W2)      kk = k * xi / |k * xi|      k~ = k * (1 + (eta - 1) * alpha)
    y_t = W_o ((GroupNorm(o_t) + (r_t . (k~_t * r_k)) v_t) * gate_t)

Each input is a lerp of x_t and x_{t-1}. v is mixed with the first layer's value, which crosses layers in the context as
``value_first``; the first layer has no parameters for that. Names follow the equations of the paper; q is not scaled.
"""

import math
from functools import partial
from typing import ClassVar, Self

import jax
import jax.numpy as jnp
import pydantic
from flax import nnx

from effarch.mixers.base import Context, LayerInfo, Mixer, MixerConfig, copy_projections
from effarch.mixers.softmax_attention import Attention
from effarch.nn.lerp import lerp
from effarch.nn.linear import Linear
from effarch.nn.low_rank import LowRank
from effarch.nn.norm import LayerNorm, unit_vector
from effarch.ops.channels import over_tokens
from effarch.ops.conv import token_shift
from effarch.ops.precision import accumulator
from effarch.ops.recurrence import DiagonalPlusRankOne, linear_recurrence
from effarch.ops.recurrence.flops import recurrence_flops
from effarch.registry import register
from effarch.typing import Array

_LERPS = {"r": 0.2, "w": 0.9, "k": 0.7, "v": 0.7, "a": 0.9, "g": 0.2}  # exponent of the initial curve


@register("rwkv7", kind="mixer")
class RWKV7(MixerConfig):
    """RWKV-7 time mix. The width of the model is num_heads * head_dim."""

    recurrent: ClassVar[bool] = True
    context_parallel: ClassVar[bool] = True
    transition: ClassVar[str] = "diagonal plus rank one"
    paper: ClassVar[str] = '2503.14456 RWKV-7 "Goose" with Expressive Dynamic State Evolution'

    num_heads: int = pydantic.Field(12, gt=0, description="heads")
    head_dim: int = pydantic.Field(64, gt=0, description="width of a head, keys and values")
    rank_w: int = pydantic.Field(64, gt=0, description="rank of the decay's low-rank map")
    rank_a: int = pydantic.Field(64, gt=0, description="rank of the in-context rate's")
    rank_v: int = pydantic.Field(32, gt=0, description="rank of the value residual's")
    rank_g: int = pydantic.Field(128, gt=0, description="rank of the gate's")

    def make(self, dim: int, *, layer: LayerInfo, rngs: nnx.Rngs) -> "RWKV7Mixer":
        return RWKV7Mixer(self, dim, layer=layer, rngs=rngs)

    def flops(self, dim: int, time: int) -> int:
        ranks = self.rank_w + self.rank_a + self.rank_v + self.rank_g
        projections = 2 * dim * (4 * dim + 2 * ranks)
        return time * projections + recurrence_flops(
            "rank_one",
            time,
            heads=self.num_heads,
            key_heads=self.num_heads,
            key_dim=self.head_dim,
            value_dim=self.head_dim,
        )

    @classmethod
    def tiny(cls) -> tuple[Self, int]:
        return cls(num_heads=4, head_dim=8, rank_w=4, rank_a=4, rank_v=4, rank_g=8), 32


class RWKV7Mixer(Mixer):
    """The module; see the file. Its state: S [B, H, K, V] float32, and the last input [B, D]."""

    def __init__(self, config: RWKV7, dim: int, *, layer: LayerInfo, rngs: nnx.Rngs) -> None:
        if config.num_heads * config.head_dim != dim:
            raise ValueError(
                f"num_heads: expected num_heads * head_dim = {dim} (the model's width), "
                f"got {config.num_heads} * {config.head_dim}"
            )
        self.config = config
        self.dtype = layer.dtype
        heads, width = config.num_heads, config.head_dim
        channel = jnp.arange(dim, dtype=jnp.float32) / dim
        rest = 1.0 - layer.index / layer.count
        self.mix = nnx.Dict(
            {name: nnx.Param(1.0 - channel ** (power * rest), axes=("embed",)) for name, power in _LERPS.items()}
        )
        square = partial(Linear, dim, (heads, width), axes=("embed", "heads", "head_dim"), rngs=rngs)
        self.r, self.k, self.v = square(scale=0.25), square(scale=0.01), square(scale=0.25)
        self.o = Linear((heads, width), dim, axes=("heads", "head_dim", "embed"), scale=0.0, rngs=rngs)
        ramp = jnp.arange(dim, dtype=jnp.float32) / max(dim - 1, 1)
        speed = -7.0 + 5.0 * ramp ** (0.85 + jnp.sqrt(jnp.asarray(layer.depth, jnp.float32))) + 0.5

        def low_rank(rank: int, bias: Array | None = None) -> LowRank:
            scales = (0.0, 0.01 * rank / max(rank, dim))
            return LowRank(dim, rank, dim, axes=("embed",), bias=bias, scales=scales, rngs=rngs)

        self.w = low_rank(config.rank_w, bias=speed)
        self.a = low_rank(config.rank_a, bias=jnp.zeros((dim,), jnp.float32))
        self.g = low_rank(config.rank_g)
        self.value = None if layer.first else low_rank(config.rank_v, bias=jnp.ones((dim,), jnp.float32))
        per_head = ("heads", "head_dim")
        self.xi = nnx.Param(jnp.full((heads, width), 0.71, jnp.float32), axes=per_head)
        self.alpha = nnx.Param(jnp.full((heads, width), 1.02, jnp.float32), axes=per_head)
        self.bonus = nnx.Param(jnp.full((heads, width), -0.04, jnp.float32), axes=per_head)
        self.norm = LayerNorm(width, heads=heads, eps=64e-5, axes=per_head)

    def init_state(self, batch_size: int, max_length: int) -> tuple[Array, Array]:
        c = self.config
        s = jnp.zeros((batch_size, c.num_heads, c.head_dim, c.head_dim), jnp.float32)
        return s, jnp.zeros((batch_size, c.num_heads * c.head_dim), self.dtype)

    def _value(self, x: Array, heads: tuple[int, ...], ctx: Context) -> tuple[Array, Context]:
        v = self.v(x)
        if self.value is None:  # the first layer
            return v, ctx.share(value_first=v)
        amount = jax.nn.sigmoid(self.value(x)).reshape(heads)
        return v + (ctx.shared["value_first"] - v) * amount, ctx

    def __call__(self, x: Array, state: tuple | None, ctx: Context) -> tuple[Array, tuple | None, Context]:
        c = self.config
        s, last = (None, None) if state is None else state
        previous, last = token_shift(x, state=last, segment_ids=ctx.segments)
        mixed = {name: lerp(x, previous, mix) for name, mix in self.mix.items()}
        heads = (*x.shape[:2], c.num_heads, c.head_dim)
        wide = accumulator(x)

        r, k = self.r(mixed["r"]), self.k(mixed["k"])
        v, ctx = self._value(mixed["v"], heads, ctx)
        speed = self.w(mixed["w"], jnp.tanh).reshape(heads).astype(wide)
        log_decay = -math.exp(-0.5) * jax.nn.sigmoid(speed)
        rate = jax.nn.sigmoid(self.a(mixed["a"])).reshape(heads)
        gate = self.g(mixed["g"], jax.nn.sigmoid).reshape(heads)

        removed = unit_vector(k * over_tokens(self.xi[...], k))
        k = k * (1.0 + (rate - 1.0) * over_tokens(self.alpha[...], k))
        transition = DiagonalPlusRankOne(log_decay, p=-rate * removed, r=removed)
        o, s = linear_recurrence(r, k, v, transition=transition, state=s, segment_ids=ctx.segments, form=ctx.form)
        bonus = (r * k * over_tokens(self.bonus[...], k)).sum(axis=-1, keepdims=True) * v
        y = self.o((self.norm(o) + bonus) * gate)
        return y, None if state is None else (s, last), ctx

    def from_attention(self, attention: Attention) -> Self:
        """r, k, v and o of the teacher (r takes the K^-1/2 of its scores), no token shift; the rest is new.

        Returns self.
        """
        copy_projections(attention, q=self.r, k=self.k, v=self.v, o=self.o, scale=self.config.head_dim**-0.5)
        for mix in self.mix.values():
            mix[...] = jnp.zeros_like(mix[...])
        return self


@register("rwkv7_channel", kind="channel")
class RWKV7Channel(MixerConfig):
    """RWKV-7 channel mix: ``W_v relu(W_k lerp(x_t, x_{t-1}))^2``."""

    recurrent: ClassVar[bool] = True
    stands_in_for_attention: ClassVar[bool] = False
    paper: ClassVar[str] = RWKV7.paper

    hidden: int = pydantic.Field(3072, gt=0, description="width of the hidden layer; 4 times the model's")

    def make(self, dim: int, *, layer: LayerInfo, rngs: nnx.Rngs) -> "RWKV7ChannelMixer":
        return RWKV7ChannelMixer(self, dim, layer=layer, rngs=rngs)

    def flops(self, dim: int, time: int) -> int:
        return 4 * time * dim * self.hidden

    @classmethod
    def tiny(cls) -> tuple[Self, int]:
        return cls(hidden=64), 32


class RWKV7ChannelMixer(Mixer):
    """The module; its state is the last input [B, D]."""

    def __init__(self, config: RWKV7Channel, dim: int, *, layer: LayerInfo, rngs: nnx.Rngs) -> None:
        self.dim, self.dtype = dim, layer.dtype
        rest = 1.0 - layer.index / layer.count
        channel = jnp.arange(dim, dtype=jnp.float32) / dim
        self.mix = nnx.Param(1.0 - channel ** (rest**4), axes=("embed",))
        self.up = Linear(dim, config.hidden, axes=("embed", "mlp"), rngs=rngs)
        self.down = Linear(config.hidden, dim, axes=("mlp", "embed"), scale=0.0, rngs=rngs)

    def init_state(self, batch_size: int, max_length: int) -> Array:
        return jnp.zeros((batch_size, self.dim), self.dtype)

    def __call__(self, x: Array, state: Array | None, ctx: Context) -> tuple[Array, Array | None, Context]:
        previous, last = token_shift(x, state=state, segment_ids=ctx.segments)
        hidden = jax.nn.relu(self.up(lerp(x, previous, self.mix)))
        return self.down(hidden * hidden), None if state is None else last, ctx
