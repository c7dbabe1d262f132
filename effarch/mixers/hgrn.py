"""HGRN (2311.04823): a gated linear RNN, elementwise, that forgets less the deeper it stands.

    h_t = f_t * h_{t-1} + (1 - f_t) * silu(W_i x_t)        f_t = b + (1 - b) sigmoid(W_f x_t)
    y_t = W_o (RMSNorm(h_t) * silu(W_g x_t))

The bound b, one per channel, rises with depth (``effarch.nn.lower_bound``); its parameter stands in the first layer
with this mixer, and the bounds cross layers in the context as ``hgrn_bounds``. As in flash-linear-attention h is
real; the paper's is complex, and turns. The norm is over all channels.
"""

from functools import partial
from typing import ClassVar, Self

import jax
import jax.numpy as jnp
import pydantic
from flax import nnx

from effarch.mixers.base import Context, LayerInfo, Mixer, MixerConfig, copy_projections
from effarch.mixers.softmax_attention import Attention
from effarch.nn.linear import Linear
from effarch.nn.lower_bound import LowerBound, bounded_forget
from effarch.nn.norm import RMSNorm
from effarch.ops.precision import accumulator
from effarch.ops.scan import linear_scan
from effarch.registry import register
from effarch.typing import Array


@register("hgrn", kind="mixer")
class HGRN(MixerConfig):
    """A running average per channel whose forget gate has a lower bound."""

    recurrent: ClassVar[bool] = True
    context_parallel: ClassVar[bool] = True
    forms: ClassVar[tuple[str, ...]] = ("chunkwise", "recurrent")
    transition: ClassVar[str] = "elementwise"
    paper: ClassVar[str] = "2311.04823 Hierarchically Gated Recurrent Neural Network for Sequence Modeling"

    channels: int | None = pydantic.Field(None, gt=0, description="width of the recurrence; null: the model's")
    norm_eps: float = pydantic.Field(1e-6, gt=0, description="of the norm")

    def make(self, dim: int, *, layer: LayerInfo, rngs: nnx.Rngs) -> "HGRNMixer":
        return HGRNMixer(self, dim, layer=layer, rngs=rngs)

    def flops(self, dim: int, time: int) -> int:
        return 2 * time * (self.channels or dim) * (4 * dim + 1)

    @classmethod
    def tiny(cls) -> tuple[Self, int]:
        return cls(channels=24), 32


class HGRNMixer(Mixer):
    """The module; see the file. Its state is h, [B, channels] float32."""

    def __init__(self, config: HGRN, dim: int, *, layer: LayerInfo, rngs: nnx.Rngs) -> None:
        self.channels = channels = config.channels or dim
        project = partial(Linear, dim, channels, axes=("embed", "mlp"), rngs=rngs)
        self.i, self.f, self.gate = project(), project(), project()
        self.bound = LowerBound((channels,), axes=("mlp",), index=layer.index, count=layer.count, first=layer.first)
        self.norm = RMSNorm(channels, eps=config.norm_eps, axes=(None,))
        self.o = Linear(channels, dim, axes=("mlp", "embed"), rngs=rngs)

    def init_state(self, batch_size: int, max_length: int) -> Array:
        return jnp.zeros((batch_size, self.channels), jnp.float32)

    def __call__(self, x: Array, state: Array | None, ctx: Context) -> tuple[Array, Array | None, Context]:
        wide = accumulator(x)
        bound, bounds = self.bound(ctx.shared.get("hgrn_bounds"))
        h = jnp.zeros((len(x), self.channels), wide) if state is None else state

        def gates(tokens: tuple[Array, Array], bound: Array) -> tuple[Array, Array]:
            i, f = (y.astype(wide) for y in tokens)
            log_f, rest = bounded_forget(f, bound)
            return log_f, rest * jax.nn.silu(i)

        y, h = linear_scan((self.i(x), self.f(x)), state=h, gates=gates, parameters=bound, segment_ids=ctx.segments)
        y = self.o(self.norm(y.astype(x.dtype)) * jax.nn.silu(self.gate(x)))
        return y, None if state is None else h, ctx.share(hgrn_bounds=bounds)

    def from_attention(self, attention: Attention) -> Self:
        """The input takes the teacher's values, the output its output; it has nothing for the gates. Returns self."""
        copy_projections(attention, v=self.i, o=self.o)
        return self
