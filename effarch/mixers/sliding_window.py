"""Sliding-window attention with attention sinks: StreamingLLM (2309.17453).

    o_t = softmax over s in (t - w, t] and the first sinks of the document

Without sinks it is the local attention of Mistral (2310.06825) and of every other layer of Gemma 2.

With the weights of a full-attention teacher this needs no training, and is the baseline that every conversion must
beat. Positions count inside the cache: beyond the window, sinks stand at the distance they have there,
min(t, w + sinks - 1) - s.
"""

from typing import ClassVar, Self

import jax.numpy as jnp
import pydantic
from flax import nnx

from effarch.mixers.base import Context, LayerInfo, Mixer
from effarch.mixers.softmax_attention import Attention, SoftmaxAttention
from effarch.ops.attention import RingCache, attend, window_attention
from effarch.registry import register
from effarch.typing import Array


@register("sliding_window", kind="mixer")
class SlidingWindow(SoftmaxAttention):
    """Causal softmax attention to a window and to the first tokens."""

    recurrent: ClassVar[bool] = True  # its cache does not grow
    paper: ClassVar[str] = "2309.17453 Efficient Streaming Language Models with Attention Sinks"

    window: int = pydantic.Field(64, gt=0, description="tokens seen, its own included")
    sinks: int = pydantic.Field(4, ge=0, description="first tokens of the document that stay visible")

    def make(self, dim: int, *, layer: LayerInfo, rngs: nnx.Rngs) -> Mixer:
        return SlidingWindowMixer(self, dim, layer=layer, rngs=rngs)

    def flops(self, dim: int, time: int) -> int:
        seen = sum(min(t, self.window + self.sinks) for t in range(1, min(time, self.window + self.sinks) + 1))
        seen += max(time - self.window - self.sinks, 0) * (self.window + self.sinks)
        return time * self.projection_flops(dim) + 4 * self.num_heads * self.head_dim * seen

    @classmethod
    def tiny(cls) -> tuple[Self, int]:
        return cls(num_heads=4, num_kv_heads=2, head_dim=8, window=7, sinks=2), 32


class SlidingWindowMixer(Attention):
    """The module; see the file. Its state is a ring buffer."""

    config: SlidingWindow

    def init_state(self, batch_size: int, max_length: int) -> RingCache:
        c = self.config
        return RingCache.init(batch_size, c.window, c.sinks, c.num_kv_heads, c.head_dim, c.head_dim, self.dtype)

    def __call__(self, x: Array, state: RingCache | None, ctx: Context) -> tuple[Array, RingCache | None, Context]:
        c = self.config
        q, k, v = self.project(x)
        inside = jnp.minimum(ctx.positions, c.window + c.sinks - 1)
        q_sink = self.rotate(q, ctx, inside) if c.sinks else None
        q, k = self.rotate(q, ctx), self.rotate(k, ctx)
        if state is None:
            form = "chunkwise" if ctx.form == "recurrent" else ctx.form
            o = window_attention(
                q,
                k,
                v,
                window=c.window,
                sinks=c.sinks,
                q_sink=q_sink,
                segment_ids=ctx.segments,
                form=form,
                cap=c.logit_cap,
            )
        else:
            o, state = attend(q, k, v, state, ctx.segments, form=ctx.form, q_sink=q_sink, cap=c.logit_cap)
        return self.output(o, x), state, ctx
