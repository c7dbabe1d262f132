"""Nystromformer (2102.03902): softmax attention through landmarks, and a convolution of the values beside it.

    o = softmax(q k~^T) Z softmax(q~ k^T) v + conv(v)        q~, k~: means over m segments of the row

Not causal, any T, O(T m). Segments are as even as can be where m does not divide T (the authors pad), rows of at most m
tokens are softmax attention, and the scale of the iteration for Z is each matrix's own
(:func:`effarch.ops.attention.nystrom.pseudo_inverse`). The convolution has one filter per head, for all its channels.
"""

from functools import partial
from typing import ClassVar, Self

import jax
import jax.numpy as jnp
import pydantic
from flax import nnx

from effarch.mixers.base import Context, LayerInfo, Mixer, MixerConfig, copy_projections, whole_rows_only
from effarch.mixers.softmax_attention import Attention
from effarch.nn.qkv import QKV
from effarch.nn.rotary import rotate
from effarch.ops.attention.nystrom import nystrom_attention
from effarch.ops.conv import causal_conv
from effarch.registry import register
from effarch.typing import Array, Float


@register("nystromformer", kind="mixer")
class Nystromformer(MixerConfig):
    """Softmax attention through landmarks."""

    causal: ClassVar[bool] = False
    packed: ClassVar[bool] = False
    forms: ClassVar[tuple[str, ...]] = ("parallel",)
    paper: ClassVar[str] = "2102.03902 Nystromformer: A Nystrom-Based Algorithm for Approximating Self-Attention"

    num_heads: int = pydantic.Field(12, gt=0, description="heads")
    head_dim: int = pydantic.Field(64, gt=0, description="width of a head")
    landmarks: int = pydantic.Field(64, gt=0, description="segments of the row whose means stand for its tokens")
    conv_width: int | None = pydantic.Field(65, gt=0, description="taps of the values' convolution, odd; null: none")
    bias: bool = pydantic.Field(True, description="biases on q, k, v and the output")
    rope_theta: float | None = pydantic.Field(None, gt=0, description="base of rotary wavelengths; null: no rotation")

    @pydantic.field_validator("conv_width")
    @classmethod
    def _odd(cls, width: int | None) -> int | None:
        if width is not None and width % 2 == 0:
            raise ValueError(f"conv_width: expected an odd number, as many taps before a token as after, got {width}")
        return width

    def make(self, dim: int, *, layer: LayerInfo, rngs: nnx.Rngs) -> "NystromformerMixer":
        return NystromformerMixer(self, dim, rngs=rngs)

    def flops(self, dim: int, time: int) -> int:
        width, m = self.num_heads * self.head_dim, self.landmarks
        fixed = 2 * m * m * (width + 4 * 6 * self.num_heads * m)
        return time * (8 * dim * width + 12 * m * width + 2 * (self.conv_width or 0) * width) + fixed

    @classmethod
    def tiny(cls) -> tuple[Self, int]:
        return cls(num_heads=4, head_dim=8, landmarks=5, conv_width=3, rope_theta=1e4), 32


def _filters(rngs: nnx.Rngs, taps: int, heads: int) -> Float[Array, "W H"]:
    return jax.random.uniform(rngs.params(), (taps, heads), jnp.float32, -(taps**-0.5), taps**-0.5)


class NystromformerMixer(Mixer):
    """The module; see the file."""

    def __init__(self, config: Nystromformer, dim: int, *, rngs: nnx.Rngs) -> None:
        self.config = config
        heads, width, taps = config.num_heads, config.head_dim, config.conv_width
        sizes = {"heads": heads, "kv_heads": heads, "key_dim": width, "value_dim": width}
        self.qkv = QKV(dim, **sizes, bias=config.bias, out_bias=config.bias, rngs=rngs)
        self.conv = None if taps is None else nnx.Param(_filters(rngs, taps, heads), axes=("conv", "heads"))

    def _convolved(self, v: Float[Array, "B T H V"], weight: Float[Array, "W H"]) -> Float[Array, "B T H V"]:
        """A causal one of the row shifted by ``W // 2``.

        Not XLA's own: where the row is split over devices, jaxlib 0.10.2 gives its filters' gradient once per part.
        """
        batch, time, heads, width = v.shape
        later = weight.shape[0] // 2
        rows = jnp.pad(v.reshape(batch, time, heads * width), [(0, 0), (0, later), (0, 0)])
        y, _ = causal_conv(rows, jnp.repeat(weight, width, axis=1).astype(v.dtype))
        return y[:, later:].reshape(v.shape)

    def __call__(self, x: Array, state: tuple | None, ctx: Context) -> tuple[Array, tuple | None, Context]:
        c = self.config
        whole_rows_only("nystromformer", ctx)
        q, k, v = self.qkv(x)
        if c.rope_theta is not None:
            turn = partial(rotate, positions=ctx.positions, theta=c.rope_theta)
            q, k = turn(q), turn(k)
        o = nystrom_attention(q, k, v, landmarks=c.landmarks)
        if self.conv is not None:
            o = o + self._convolved(v, self.conv[...])
        return self.qkv.o(o), state, ctx

    def from_attention(self, attention: Attention) -> Self:
        """q, k, v and o of the teacher, its key heads repeated; the convolution starts at zero. Returns self."""
        copy_projections(attention, q=self.qkv.q, k=self.qkv.k, v=self.qkv.v, o=self.qkv.o)
        if self.conv is not None:
            self.conv[...] = jnp.zeros_like(self.conv[...])
        return self
