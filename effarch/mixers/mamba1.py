"""Mamba, the selective state space model S6 (2312.00752). Channel d holds N states:

    h_dn,t = exp(D_d,t A_dn) h_dn,t-1 + D_d,t B_n,t x_d,t        y_d,t = sum_n C_n,t h_dn,t + skip_d x_d,t
    A = -exp(A_log)        D = softplus(W_2 W_1 x + dt)        B = W_B x        C = W_C x        x = silu(conv(W_x u))
    out = W_o (y * silu(W_z u))

A block of its own: the published models have no channel mixer. Decays and states of all tokens (T x channels x N) never
exist at once: they are formed inside the chunks of the scan. Parameters are those of the released models, the
projections of each kind apart.
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
from effarch.nn.decay import step_sizes
from effarch.nn.linear import Linear
from effarch.nn.low_rank import LowRank
from effarch.nn.short_conv import ShortConv
from effarch.ops.channels import over_tokens
from effarch.ops.precision import accumulator
from effarch.ops.scan import linear_scan
from effarch.registry import register
from effarch.typing import Array

Tokens = tuple[Array, Array, Array, Array]


@register("mamba1", kind="mixer")
class Mamba1(MixerConfig):
    """Selective state spaces: a decay per channel and state, formed from the input."""

    recurrent: ClassVar[bool] = True
    context_parallel: ClassVar[bool] = True
    forms: ClassVar[tuple[str, ...]] = ("chunkwise", "recurrent")
    transition: ClassVar[str] = "elementwise"
    paper: ClassVar[str] = "2312.00752 Mamba: Linear-Time Sequence Modeling with Selective State Spaces"

    channels: int | None = pydantic.Field(None, gt=0, description="width of the recurrence; null: twice the model's")
    state_size: int = pydantic.Field(16, gt=0, description="states N of a channel")
    rank: int | None = pydantic.Field(None, gt=0, description="rank of the step sizes' map; null: model width / 16")
    conv_width: int = pydantic.Field(4, gt=0, description="taps of the short convolution")

    def make(self, dim: int, *, layer: LayerInfo, rngs: nnx.Rngs) -> "Mamba1Mixer":
        return Mamba1Mixer(self, dim, layer=layer, rngs=rngs)

    def sizes(self, dim: int) -> tuple[int, int]:
        """Channels, and the rank of the step sizes' map, in a model of width ``dim``."""
        return self.channels or 2 * dim, self.rank or math.ceil(dim / 16)

    def flops(self, dim: int, time: int) -> int:
        channels, rank = self.sizes(dim)
        projections = 3 * dim + 2 * rank + 2 * self.state_size
        return 2 * time * channels * (projections + self.conv_width + 4 * self.state_size)

    @classmethod
    def tiny(cls) -> tuple[Self, int]:
        return cls(state_size=4), 16


class Mamba1Mixer(Mixer):
    """The module; see the file. Its state: h [B, channels, N] float32, and the last inputs of the convolution."""

    def __init__(self, config: Mamba1, dim: int, *, layer: LayerInfo, rngs: nnx.Rngs) -> None:
        self.config = config
        self.dtype = layer.dtype
        (channels, rank), size = config.sizes(dim), config.state_size
        project = partial(Linear, dim, channels, axes=("embed", "mlp"), rngs=rngs)
        self.x, self.z = project(), project()
        self.conv = ShortConv(channels, config.conv_width, bias=True, rngs=rngs)
        select = partial(Linear, channels, size, axes=("mlp", None), rngs=rngs)
        self.b, self.c = select(), select()
        self.dt = LowRank(
            channels, rank, channels, axes=("mlp",), bias=step_sizes(rngs, (channels,)), scales=(1.0, 1 / 3), rngs=rngs
        )
        rates = jnp.log(jnp.arange(1, size + 1, dtype=jnp.float32))
        self.log_rate = nnx.Param(jnp.tile(rates[None], (channels, 1)), axes=("mlp", None))
        self.skip = nnx.Param(jnp.ones((channels,), jnp.float32), axes=("mlp",))
        self.o = Linear(channels, dim, axes=("mlp", "embed"), rngs=rngs)

    def init_state(self, batch_size: int, max_length: int) -> tuple[Array, Array]:
        h = jnp.zeros((batch_size, *self.log_rate.shape), jnp.float32)
        return h, self.conv.init_state(batch_size, self.dtype)

    def __call__(self, x: Array, state: tuple | None, ctx: Context) -> tuple[Array, tuple | None, Context]:
        h, conv_state = (None, None) if state is None else state
        z = self.z(x)
        x, conv_state = self.conv(self.x(x), conv_state, ctx.segments)
        wide = accumulator(x)
        if h is None:
            h = jnp.zeros((len(x), *self.log_rate.shape), wide)
        rate = -jnp.exp(self.log_rate[...].astype(wide))

        def gates(tokens: Tokens, rate: Array) -> tuple[Array, Array]:
            x, dt, b, _ = (y.astype(wide) for y in tokens)
            step = jax.nn.softplus(dt)[..., None]
            decay = step * over_tokens(rate, jnp.broadcast_to(step, (*dt.shape, rate.shape[-1])))
            return decay, step * b[:, :, None, :] * x[..., None]

        def read(h: Array, tokens: Tokens) -> Array:
            x, c = tokens[0], tokens[-1]
            y = jnp.einsum("btdn,btn->btd", h, c.astype(wide), precision=jax.lax.Precision.HIGHEST)
            return y.astype(x.dtype)

        tokens = (x, self.dt(x), self.b(x), self.c(x))
        y, h = linear_scan(tokens, state=h, gates=gates, parameters=rate, read=read, segment_ids=ctx.segments)
        y = self.o((y + x * over_tokens(self.skip[...], x)) * jax.nn.silu(z))
        return y, None if state is None else (h, conv_state), ctx

    def from_attention(self, attention: Attention) -> Self:
        """X takes the teacher's values, its heads side by side, and the output its output; the convolution vanishes.

        B and C read the channels and are shared by all of them: the teacher's keys and queries have no place there.
        Returns self.
        """
        copy_projections(attention, v=self.x, o=self.o)
        self.conv.vanish()
        return self
