"""A window of softmax attention and a recurrence beside it, their outputs added.

    y_t = window(x)_t + g * inner(x)_t        g [D], 0 at first

inner is any recurrent mixer, with projections of its own; window is sliding-window attention with sinks (2309.17453).
With a softmax teacher's weights in both, what comes out at first is the teacher's window alone; g, one number per
channel, lets the recurrence in. Where the two are to share queries, keys and one normalised sum, see
``window_linear``; parallel heads of attention and of a recurrence are also what Hymba (2411.13676) has.
"""

from typing import ClassVar, Self, cast

import jax.numpy as jnp
import pydantic
from flax import nnx

from effarch.mixers.base import Context, LayerInfo, Mixer, MixerChoice, MixerConfig
from effarch.mixers.retnet import RetNet
from effarch.mixers.sliding_window import SlidingWindow, SlidingWindowMixer
from effarch.mixers.softmax_attention import Attention, StandIn
from effarch.ops.channels import over_tokens
from effarch.registry import register
from effarch.typing import Array, PyTree


@register("window_recurrence", kind="mixer")
class WindowRecurrence(SlidingWindow):
    """Softmax attention to a window, and a recurrent mixer; split over devices where the inner mixer may be."""

    paper: ClassVar[str] = "2411.13676 Hymba: A Hybrid-head Architecture for Small Language Models"

    inner: MixerChoice = pydantic.Field("gated_deltanet", validate_default=True, description="the recurrent mixer")

    @pydantic.field_validator("inner")
    @classmethod
    def _can_stand_in(cls, inner: MixerConfig) -> MixerConfig:
        if not (inner.recurrent and inner.causal and inner.stands_in_for_attention):
            raise ValueError(f"expected a recurrent mixer that takes over attention's weights, got {inner.type_name}")
        return inner

    @property
    def shares(self) -> str:
        """The inner mixer's: the first layer may have other parameters for its sake."""
        return f"{self.type_name}-{self.inner.shares}"

    def make(self, dim: int, *, layer: LayerInfo, rngs: nnx.Rngs) -> "WindowRecurrenceMixer":
        return WindowRecurrenceMixer(self, dim, layer=layer, rngs=rngs)

    def flops(self, dim: int, time: int) -> int:
        return super().flops(dim, time) + self.inner.flops(dim, time) + 2 * dim * time

    def matching(self, attention: MixerConfig) -> Self:
        """The inner mixer follows the teacher, too."""
        return super().matching(attention).replace(inner=self.inner.matching(attention))

    @classmethod
    def tiny(cls) -> tuple[Self, int]:
        inner, dim = RetNet.tiny()
        return cls(num_heads=4, num_kv_heads=2, head_dim=8, window=7, sinks=2, inner=inner), dim


class WindowRecurrenceMixer(Mixer):
    """The module; see the file. Its state: those of the window and of the inner mixer."""

    def __init__(self, config: WindowRecurrence, dim: int, *, layer: LayerInfo, rngs: nnx.Rngs) -> None:
        self.config = config
        self.window = SlidingWindowMixer(config, dim, layer=layer, rngs=rngs)
        self.inner = config.inner.make(dim, layer=layer, rngs=rngs)
        self.gain = nnx.Param(jnp.zeros((dim,), jnp.float32), axes=("embed",))

    def init_state(self, batch_size: int, max_length: int) -> tuple[PyTree, PyTree]:
        return self.window.init_state(batch_size, max_length), self.inner.init_state(batch_size, max_length)

    def __call__(self, x: Array, state: tuple | None, ctx: Context) -> tuple[Array, tuple | None, Context]:
        ring, carried = (None, None) if state is None else state
        near, ring, ctx = self.window(x, ring, ctx)
        far, carried, ctx = self.inner(x, carried, ctx)
        y = near + over_tokens(self.gain[...], far) * far
        return y, None if state is None else (ring, carried), ctx

    def from_attention(self, attention: Attention) -> Self:
        """The teacher's weights in the window, and what the inner mixer can use of them there. Returns self."""
        self.window.from_attention(attention)
        cast(StandIn, self.inner).from_attention(attention)
        return self
