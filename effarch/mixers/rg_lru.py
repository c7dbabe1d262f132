"""The recurrent block of Griffin and Hawk with its real-gated linear recurrent unit, RG-LRU (2402.19427).

    h_t = a_t * h_{t-1} + sqrt(1 - a_t^2) * (i_t * x_t)        log a_t = -8 softplus(L) * sigmoid(W_a x_t + b_a)
    i_t = sigmoid(W_i x_t + b_i)        x = conv(W_x u + b_x)        y_t = W_o (h_t * gelu(W_g u + b_g)) + b_o

As in RecurrentGemma: W_a and W_i are block-diagonal, the convolution has a bias and no activation, the factor is 1 at
the first token of a document, and the gradient of the square root is clipped at 1000.
"""

from functools import partial
from typing import ClassVar, Self

import jax
import jax.numpy as jnp
import pydantic
from flax import nnx

from effarch.mixers.base import Context, LayerInfo, Mixer, MixerConfig, copy_projections
from effarch.mixers.softmax_attention import Attention
from effarch.nn.block_linear import BlockLinear
from effarch.nn.decay import inverse_softplus
from effarch.nn.linear import Linear
from effarch.nn.short_conv import ShortConv
from effarch.ops.channels import over_tokens
from effarch.ops.precision import accumulator
from effarch.ops.scan import linear_scan
from effarch.registry import register
from effarch.typing import Array, Float

_SHARPNESS = 8.0  # c in the paper
_STEEPEST = 1000.0  # gradient of the square root


@jax.custom_vjp
def bounded_sqrt(x: Float[Array, "..."]) -> Float[Array, "..."]:
    """``sqrt(x)`` for x >= 0, its gradient at most 1000: it is infinite at 0, where a decay has reached 1."""
    return jnp.sqrt(x)


bounded_sqrt.defvjp(
    lambda x: (jnp.sqrt(x), x),
    lambda x, cotangent: (cotangent * jax.lax.rsqrt(jnp.maximum(4.0 * x, _STEEPEST**-2)),),
)


@register("rg_lru", kind="mixer")
class RGLRU(MixerConfig):
    """A gated decay per channel, normalised so that the state keeps its variance."""

    recurrent: ClassVar[bool] = True
    context_parallel: ClassVar[bool] = True
    forms: ClassVar[tuple[str, ...]] = ("chunkwise", "recurrent")
    transition: ClassVar[str] = "elementwise"
    paper: ClassVar[str] = "2402.19427 Griffin: Mixing Gated Linear Recurrences with Local Attention"

    num_heads: int = pydantic.Field(10, gt=0, description="blocks of the gates' block-diagonal maps")
    head_dim: int = pydantic.Field(256, gt=0, description="channels of a block")
    conv_width: int = pydantic.Field(4, gt=0, description="taps of the short convolution")

    def make(self, dim: int, *, layer: LayerInfo, rngs: nnx.Rngs) -> "RGLRUMixer":
        return RGLRUMixer(self, dim, layer=layer, rngs=rngs)

    def flops(self, dim: int, time: int) -> int:
        return 2 * time * self.num_heads * self.head_dim * (3 * dim + 2 * self.head_dim + self.conv_width + 2)

    @classmethod
    def tiny(cls) -> tuple[Self, int]:
        return cls(num_heads=2, head_dim=8), 16


class RGLRUMixer(Mixer):
    """The module; see the file. Its state: h [B, H, K] float32, and the last inputs of the convolution."""

    def __init__(self, config: RGLRU, dim: int, *, layer: LayerInfo, rngs: nnx.Rngs) -> None:
        self.config = config
        self.dtype = layer.dtype
        heads, width = config.num_heads, config.head_dim
        project = partial(Linear, dim, (heads, width), axes=("embed", "heads", "head_dim"), bias=True, rngs=rngs)
        self.x, self.gate = project(), project()
        self.conv = ShortConv(heads * width, config.conv_width, bias=True, silu=False, rngs=rngs)
        self.a = BlockLinear(heads, width, width, bias=True, rngs=rngs)
        self.i = BlockLinear(heads, width, width, bias=True, rngs=rngs)
        square = jax.random.uniform(rngs.params(), (heads, width), jnp.float32, 0.9**2, 0.999**2)
        self.rate = nnx.Param(inverse_softplus(-0.5 * jnp.log(square)), axes=("heads", "head_dim"))
        self.o = Linear((heads, width), dim, axes=("heads", "head_dim", "embed"), bias=True, rngs=rngs)

    def init_state(self, batch_size: int, max_length: int) -> tuple[Array, Array]:
        h = jnp.zeros((batch_size, *self.rate.shape), jnp.float32)
        return h, self.conv.init_state(batch_size, self.dtype)

    def __call__(self, x: Array, state: tuple | None, ctx: Context) -> tuple[Array, tuple | None, Context]:
        h, conv_state = (None, None) if state is None else state
        gate = jax.nn.gelu(self.gate(x), approximate=True)
        (x,), conv_state = self.conv.together([self.x(x)], conv_state, ctx.segments)
        wide = accumulator(x)
        if h is None:
            h = jnp.zeros((len(x), *self.rate.shape), wide)
        rate = -_SHARPNESS * jax.nn.softplus(self.rate[...].astype(wide))

        def gates(tokens: tuple[Array, ...], rate: Array) -> tuple[Array, Array]:
            x, a, i = (y.astype(wide) for y in tokens[:-1])
            log_decay = over_tokens(rate, a) * jax.nn.sigmoid(a)
            factor = jnp.where(tokens[-1][..., None, None], 1.0, bounded_sqrt(-jnp.expm1(2.0 * log_decay)))
            return log_decay, factor * jax.nn.sigmoid(i) * x

        first = jnp.broadcast_to(ctx.positions == 0, x.shape[:2])
        tokens = (x, self.a(x), self.i(x), first)
        y, h = linear_scan(tokens, state=h, gates=gates, parameters=rate, segment_ids=ctx.segments)
        y = self.o(y.astype(x.dtype) * gate)
        return y, None if state is None else (h, conv_state), ctx

    def from_attention(self, attention: Attention) -> Self:
        """X takes the teacher's values and the output its output; the convolution vanishes, the gates are new.

        Returns self.
        """
        copy_projections(attention, v=self.x, o=self.o)
        self.conv.vanish()
        return self
