"""The channel mixes of RWKV-4 to RWKV-7 (2305.13048, 2404.05892, 2503.14456).

    y_t = sigmoid(W_r x_r) * (W_v relu(W_k x_k)^2)        x_n = x_t + (x_{t-1} - x_t) * mix_n

RWKV-7 has no receptance: ``y_t = W_v relu(W_k x_k)^2``. RWKV-4 and RWKV-5 store one minus our mixes. Hidden widths of
the released models: 4 D (RWKV-4, RWKV-7), 3.5 D (RWKV-5, RWKV-6).
"""

from typing import ClassVar, Self

import jax
import jax.numpy as jnp
import pydantic
from flax import nnx

from effarch.mixers.base import Context, LayerInfo, Mixer, MixerConfig
from effarch.nn.lerp import Lerps, curve
from effarch.nn.linear import Linear
from effarch.ops.conv import token_shift
from effarch.registry import register
from effarch.typing import Array


class ChannelMixConfig(MixerConfig):
    """A feed-forward layer that sees the token before; ``receptance`` gates it."""

    recurrent: ClassVar[bool] = True
    context_parallel: ClassVar[bool] = True
    stands_in_for_attention: ClassVar[bool] = False
    receptance: ClassVar[bool] = True

    hidden: int = pydantic.Field(2688, gt=0, description="width of the hidden layer")

    def make(self, dim: int, *, layer: LayerInfo, rngs: nnx.Rngs) -> "ChannelMix":
        return ChannelMix(self, dim, layer=layer, rngs=rngs)

    def flops(self, dim: int, time: int) -> int:
        return time * dim * (4 * self.hidden + (2 * dim if self.receptance else 0))

    @classmethod
    def tiny(cls) -> tuple[Self, int]:
        return cls(hidden=48), 32


@register("rwkv4_channel", kind="channel")
class RWKV4Channel(ChannelMixConfig):
    """RWKV-4's, 4 times as wide as the model."""

    paper: ClassVar[str] = "2305.13048 RWKV: Reinventing RNNs for the Transformer Era"

    hidden: int = pydantic.Field(3072, gt=0, description="width of the hidden layer")


@register("rwkv5_channel", kind="channel")
class RWKV5Channel(ChannelMixConfig):
    """RWKV-5's, 3.5 times as wide as the model."""

    paper: ClassVar[str] = "2404.05892 Eagle and Finch: RWKV with Matrix-Valued States and Dynamic Recurrence"


@register("rwkv6_channel", kind="channel")
class RWKV6Channel(ChannelMixConfig):
    """RWKV-6's: the same function as RWKV-5's."""

    paper: ClassVar[str] = RWKV5Channel.paper


@register("rwkv7_channel", kind="channel")
class RWKV7Channel(ChannelMixConfig):
    """RWKV-7's, 4 times as wide as the model, without receptance."""

    receptance: ClassVar[bool] = False
    paper: ClassVar[str] = '2503.14456 RWKV-7 "Goose" with Expressive Dynamic State Evolution'

    hidden: int = pydantic.Field(3072, gt=0, description="width of the hidden layer")


class ChannelMix(Mixer):
    """The module; its state is the last input [B, D]."""

    def __init__(self, config: ChannelMixConfig, dim: int, *, layer: LayerInfo, rngs: nnx.Rngs) -> None:
        self.dim, self.dtype = dim, layer.dtype
        rest = 1.0 - layer.index / layer.count
        powers = {"k": rest, "r": rest} if config.receptance else {"k": rest**4}
        self.mix = Lerps({name: curve(dim, power) for name, power in powers.items()})
        gain = min(dim / config.hidden, 1.0)  # as large as the orthogonal matrix of RWKV-5 to 7
        self.up = Linear(dim, config.hidden, axes=("embed", "mlp"), scale=gain, rngs=rngs)
        self.down = Linear(config.hidden, dim, axes=("mlp", "embed"), scale=0.0, rngs=rngs)
        gate = Linear(dim, dim, axes=("embed", None), scale=0.0, rngs=rngs) if config.receptance else None
        self.receptance = gate

    def init_state(self, batch_size: int, max_length: int) -> Array:
        return jnp.zeros((batch_size, self.dim), self.dtype)

    def __call__(self, x: Array, state: Array | None, ctx: Context) -> tuple[Array, Array | None, Context]:
        previous, last = token_shift(x, state=state, segment_ids=ctx.segments)
        mixed = self.mix(x, previous)
        y = self.down(jax.nn.relu(self.up(mixed["k"])) ** 2)
        if self.receptance is not None:
            y = jax.nn.sigmoid(self.receptance(mixed["r"])) * y
        return y, None if state is None else last, ctx
