"""BaseConv (2312.04927), the gated short convolution of Based (2402.18668).

    [u_t, z_t] = W_in x_t + b_in        y_t = W_out (silu(conv(u)_t) * z_t) + b_out

conv is depthwise, causal, of width 3 with a bias. As in Based's released models, where these are three of five layers
beside Taylor linear attention and sliding windows; Zoology's layer has no silu and may have long convolutions.
"""

from typing import ClassVar, Self

import pydantic
from flax import nnx

from effarch.mixers.base import Context, LayerInfo, Mixer, MixerConfig
from effarch.nn.linear import Linear
from effarch.nn.short_conv import ShortConv
from effarch.registry import register
from effarch.typing import Array


@register("base_conv", kind="mixer")
class BaseConv(MixerConfig):
    """A gated short convolution. It sees the last few tokens only: softmax attention has no counterpart of it."""

    recurrent: ClassVar[bool] = True
    context_parallel: ClassVar[bool] = True
    stands_in_for_attention: ClassVar[bool] = False
    paper: ClassVar[str] = "2312.04927 Zoology: Measuring and Improving Recall in Efficient Language Models"

    expand: int = pydantic.Field(2, gt=0, description="width of the convolution, times the model's")
    conv_width: int = pydantic.Field(3, gt=0, description="taps of the convolution")

    def make(self, dim: int, *, layer: LayerInfo, rngs: nnx.Rngs) -> "BaseConvMixer":
        return BaseConvMixer(self, dim, layer=layer, rngs=rngs)

    def flops(self, dim: int, time: int) -> int:
        return 2 * time * self.expand * dim * (3 * dim + self.conv_width)

    @classmethod
    def tiny(cls) -> tuple[Self, int]:
        return cls(), 32


class BaseConvMixer(Mixer):
    """The module; see the file. Its state: the last inputs of the convolution."""

    def __init__(self, config: BaseConv, dim: int, *, layer: LayerInfo, rngs: nnx.Rngs) -> None:
        self.dtype = layer.dtype
        inner = config.expand * dim
        self.into = Linear(dim, (2, inner), axes=("embed", None, "mlp"), bias=True, rngs=rngs)
        self.conv = ShortConv(inner, config.conv_width, bias=True, rngs=rngs)
        self.out = Linear(inner, dim, axes=("mlp", "embed"), bias=True, rngs=rngs)

    def init_state(self, batch_size: int, max_length: int) -> Array:
        return self.conv.init_state(batch_size, self.dtype)

    def __call__(self, x: Array, state: Array | None, ctx: Context) -> tuple[Array, Array | None, Context]:
        inner = self.into(x)
        y, after = self.conv(inner[:, :, 0], state, ctx.segments)
        return self.out(y * inner[:, :, 1]), None if state is None else after, ctx
