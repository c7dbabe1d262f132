"""What the time mixes of RWKV-4 to RWKV-7 share: projections, initial curves, the weights of a teacher.

All their widths are ``num_heads * head_dim``, which need not be the model's.
"""

from functools import partial
from typing import ClassVar, Self

import jax.numpy as jnp
import pydantic
from flax import nnx

from effarch.mixers.base import LayerInfo, Mixer, MixerConfig, copy_projections
from effarch.mixers.softmax_attention import Attention
from effarch.nn.lerp import Lerps
from effarch.nn.linear import Linear
from effarch.nn.norm import LayerNorm
from effarch.ops.recurrence.flops import recurrence_flops
from effarch.typing import Array, PyTree

PER_HEAD = ("heads", "head_dim")


class TimeMixConfig(MixerConfig):
    """Heads of keys and values of one width."""

    recurrent: ClassVar[bool] = True

    num_heads: int = pydantic.Field(12, gt=0, description="heads")
    head_dim: int = pydantic.Field(64, gt=0, description="width of a head, keys and values")

    @property
    def width(self) -> int:
        """Of all heads together."""
        return self.num_heads * self.head_dim

    def recurrence_flops(self, kind: str, time: int) -> int:
        """Of the recurrence over ``time`` tokens; ``kind`` as in :func:`recurrence_flops`."""
        heads, width = self.num_heads, self.head_dim
        return recurrence_flops(kind, time, heads=heads, key_heads=heads, key_dim=width, value_dim=width)


def ramp(heads: int, width: int) -> Array:
    """0 at the first channel, 1 at the last, ``[H, K]``."""
    channel = jnp.arange(heads * width, dtype=jnp.float32)
    return (channel / max(heads * width - 1, 1)).reshape(heads, width)


def zigzag(heads: int, width: int) -> Array:
    """0, 1, -1, 0, 1, -1, ... over the channels, ``[H, K]``: so that neighbours begin apart."""
    return ((jnp.arange(heads * width, dtype=jnp.float32) + 1) % 3 - 1).reshape(heads, width)


class TimeMix(Mixer):
    """Projections r, k, v ``[D, H, K]`` and o back, a norm per head, lerps ``mix``.

    Args:
      config: heads. dim: width D of the model. mix: the lerps. layer: where it stands.
      scales: variances of the initial r, k and v times fan-in; o starts at zero.
    """

    def __init__(
        self,
        config: TimeMixConfig,
        dim: int,
        mix: Lerps,
        *,
        layer: LayerInfo,
        scales: tuple[float, float, float] = (1.0, 0.01, 1.0),
        rngs: nnx.Rngs,
    ) -> None:
        self.config, self.dim, self.dtype = config, dim, layer.dtype
        self.mix = mix
        shape = (config.num_heads, config.head_dim)
        project = partial(Linear, dim, shape, axes=("embed", *PER_HEAD), rngs=rngs)
        self.r, self.k, self.v = (project(scale=scale) for scale in scales)
        self.o = Linear(shape, dim, axes=(*PER_HEAD, "embed"), scale=0.0, rngs=rngs)

    def head_norm(self, layer: LayerInfo) -> LayerNorm:
        """GroupNorm of one group per head, its weight smaller in lower layers.

        RWKV-5 divides its input by 8 first and has eps 1e-5: the same.
        """
        norm = LayerNorm(self.config.head_dim, heads=self.config.num_heads, eps=64e-5, axes=PER_HEAD)
        norm.weight[...] = norm.weight[...] * ((1 + layer.index) / layer.count) ** 0.7
        return norm

    def init_state(self, batch_size: int, max_length: int) -> tuple[PyTree, Array]:
        """S ``[B, H, K, V]`` and the last input ``[B, D]``."""
        heads, width = self.config.num_heads, self.config.head_dim
        s = jnp.zeros((batch_size, heads, width, width), jnp.float32)
        return s, jnp.zeros((batch_size, self.dim), self.dtype)

    def from_attention(self, attention: Attention) -> Self:
        """r, k, v and o of the teacher (r takes the K^-1/2 of its scores), no token shift; the rest is new.

        Returns self.
        """
        copy_projections(attention, q=self.r, k=self.k, v=self.v, o=self.o, scale=self.config.head_dim**-0.5)
        self.mix.vanish()
        return self
