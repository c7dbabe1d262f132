"""A window of softmax attention and linear attention to all before it, in one normalised sum: LoLCATs (2410.10254).

    o_t = (sum_{s near t} e^{q_t.k_s / sqrt(K)} v_s + e^c sum_{s far} phi(q_t).phi(k_s) v_s) / (the same without v)
    y_t = W_o o_t

near: the last tokens and the document's first (sinks); far: all others before t. phi is any registered feature map,
Hedgehog's by default; c, one number per head, is learned. Projections, biases and rotary positions are a softmax
teacher's. At first c is small and this is nearly the teacher's window; see ``effarch.ops.window_linear`` for how it
departs from the paper, whose windows have no sinks.
"""

from typing import ClassVar, Self

import jax.numpy as jnp
import pydantic
from flax import nnx

from effarch.mixers.base import Context, LayerInfo
from effarch.mixers.sliding_window import SlidingWindow
from effarch.mixers.softmax_attention import Attention
from effarch.nn.feature_map import FeatureMapChoice
from effarch.ops.attention import RingCache
from effarch.ops.normalised import initial_state
from effarch.ops.recurrence.flops import recurrence_flops
from effarch.ops.window_linear import window_linear_attention
from effarch.registry import register
from effarch.typing import Array, PyTree


@register("window_linear", kind="mixer")
class WindowLinear(SlidingWindow):
    """Softmax attention to a window, linear attention beyond it."""

    transition: ClassVar[str] = "constant"
    paper: ClassVar[str] = "2410.10254 LoLCATs: On Low-Rank Linearizing of Large Language Models"

    feature_map: FeatureMapChoice = pydantic.Field("hedgehog", validate_default=True, description="phi, for q and k")
    log_share: float = pydantic.Field(-2.0, description="c at first, natural log")

    def make(self, dim: int, *, layer: LayerInfo, rngs: nnx.Rngs) -> "WindowLinearMixer":
        return WindowLinearMixer(self, dim, layer=layer, rngs=rngs)

    def flops(self, dim: int, time: int) -> int:
        maps = (self.num_heads + self.num_kv_heads) * self.feature_map.flops(self.head_dim)
        return (
            super().flops(dim, time)
            + time * maps
            + recurrence_flops(
                "decay",
                time,
                heads=self.num_heads,
                key_heads=self.num_heads,
                key_dim=self.feature_map.width(self.head_dim),
                value_dim=self.head_dim + 1,
            )
        )

    @classmethod
    def tiny(cls) -> tuple[Self, int]:
        phi = type(cls().feature_map).tiny()
        return cls(num_heads=4, num_kv_heads=2, head_dim=8, window=7, sinks=2, feature_map=phi), 32


class WindowLinearMixer(Attention):
    """The module; see the file. Its state: the ring of the window, and S and z as linear attention has them."""

    config: WindowLinear

    def __init__(self, config: WindowLinear, dim: int, *, layer: LayerInfo, rngs: nnx.Rngs) -> None:
        super().__init__(config, dim, layer=layer, rngs=rngs)
        heads, width = config.num_heads, config.head_dim
        phi = config.feature_map
        self.phi_q = phi.make(width, heads, rngs=rngs)
        self.phi_k = None if phi.shared else phi.make(width, config.num_kv_heads, rngs=rngs)
        self.log_share = nnx.Param(jnp.full((heads,), config.log_share, jnp.float32), axes=("heads",))

    def init_state(self, batch_size: int, max_length: int) -> tuple[RingCache, PyTree]:
        c = self.config
        ring = RingCache.init(batch_size, c.window, c.sinks, c.num_kv_heads, c.head_dim, c.head_dim, self.dtype)
        width, scaled = c.feature_map.width(c.head_dim), c.feature_map.log_scaled
        return ring, initial_state(batch_size, c.num_heads, c.num_kv_heads, width, c.head_dim, log_scaled=scaled)

    def __call__(self, x: Array, state: tuple | None, ctx: Context) -> tuple[Array, tuple | None, Context]:
        c = self.config
        q, k, v = self.project(x)
        q_sink = self.rotate(q, ctx, jnp.minimum(ctx.positions, c.window + c.sinks - 1))
        q, k = self.rotate(q, ctx), self.rotate(k, ctx)
        o, state = window_linear_attention(
            q,
            k,
            v,
            phi_q=self.phi_q,
            phi_k=self.phi_q if self.phi_k is None else self.phi_k,
            log_share=self.log_share[...],
            window=c.window,
            sinks=c.sinks,
            q_sink=q_sink,
            cap=c.logit_cap,
            positions=ctx.positions,
            state=state,
            segments=ctx.segments,
            form=ctx.form,
        )
        return self.output(o, x), state, ctx
