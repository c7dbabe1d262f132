"""Gated retention (YOCO, 2405.05254), the simple GLA of flash-linear-attention: retention whose decay sees the token.

    S_t = a_t S_{t-1} + k_t v_t^T        o_t = S_t^T q_t        log a_t = logsigmoid(W_a x_t + c) / 16, per head
    y_t = W_o (RMSNorm_head(o_t) * silu(W_g x_t))

q is scaled by K^-1/2. YOCO rotates q and k, flash-linear-attention does not: ``rope_theta`` says. One learned norm
weight per value channel, shared by the heads; no short convolution.
"""

from typing import ClassVar, Self

import jax
import jax.numpy as jnp
import pydantic
from flax import nnx

from effarch.mixers.base import BiasedConfig, Context, LayerInfo, Mixer, copy_projections
from effarch.mixers.softmax_attention import Attention
from effarch.nn.linear import Linear
from effarch.nn.norm import RMSNorm
from effarch.nn.qkv import QKV
from effarch.nn.rotary import rotate
from effarch.ops.precision import accumulator
from effarch.ops.recurrence import Scalar, linear_recurrence
from effarch.ops.recurrence.flops import recurrence_flops
from effarch.registry import register
from effarch.typing import Array


@register("gated_retention", kind="mixer")
class GatedRetention(BiasedConfig):
    """Retention with a decay per head and token."""

    recurrent: ClassVar[bool] = True
    context_parallel: ClassVar[bool] = True
    transition: ClassVar[str] = "scalar"
    paper: ClassVar[str] = "2405.05254 You Only Cache Once: Decoder-Decoder Architectures for Language Models"

    num_heads: int = pydantic.Field(4, gt=0, description="heads")
    head_dim: int = pydantic.Field(256, gt=0, description="width of a query or key head")
    value_head_dim: int = pydantic.Field(256, gt=0, description="width of a value head")
    rope_theta: float | None = pydantic.Field(None, gt=0, description="base of rotary wavelengths; null: no rotation")
    temperature: float = pydantic.Field(16.0, gt=0, description="divides the log-decay: the larger, the longer memory")
    norm_eps: float = pydantic.Field(1e-6, gt=0, description="of the norm per head")

    def make(self, dim: int, *, layer: LayerInfo, rngs: nnx.Rngs) -> "GatedRetentionMixer":
        return GatedRetentionMixer(self, dim, rngs=rngs)

    def flops(self, dim: int, time: int) -> int:
        projections = 2 * dim * self.num_heads * (2 * self.head_dim + 3 * self.value_head_dim + 1)
        return time * projections + recurrence_flops(
            "decay",
            time,
            heads=self.num_heads,
            key_heads=self.num_heads,
            key_dim=self.head_dim,
            value_dim=self.value_head_dim,
        )

    @classmethod
    def tiny(cls) -> tuple[Self, int]:
        return cls(num_heads=4, head_dim=8, value_head_dim=8, rope_theta=1e4), 32


class GatedRetentionMixer(Mixer):
    """The module; see the file. Its state is S, [B, H, K, V] float32."""

    def __init__(self, config: GatedRetention, dim: int, *, rngs: nnx.Rngs) -> None:
        self.config = config
        heads, key_dim, value_dim = config.num_heads, config.head_dim, config.value_head_dim
        self.qkv = QKV(
            dim, heads=heads, kv_heads=heads, key_dim=key_dim, value_dim=value_dim, **config.biases, rngs=rngs
        )
        self.a = Linear(dim, heads, axes=("embed", "heads"), bias=True, rngs=rngs)
        self.gate = Linear(dim, (heads, value_dim), axes=("embed", "heads", "head_dim"), rngs=rngs)
        self.norm = RMSNorm(value_dim, eps=config.norm_eps, axes=(None,))

    def init_state(self, batch_size: int, max_length: int) -> Array:
        c = self.config
        return jnp.zeros((batch_size, c.num_heads, c.head_dim, c.value_head_dim), jnp.float32)

    def __call__(self, x: Array, state: Array | None, ctx: Context) -> tuple[Array, Array | None, Context]:
        c = self.config
        q, k, v = self.qkv(x)
        if c.rope_theta is not None:
            q, k = rotate(q, ctx.positions, c.rope_theta), rotate(k, ctx.positions, c.rope_theta)
        q = q * jnp.asarray(c.head_dim**-0.5, q.dtype)
        log_decay = jax.nn.log_sigmoid(self.a(x).astype(accumulator(x))) / c.temperature
        o, after = linear_recurrence(
            q, k, v, transition=Scalar(log_decay), state=state, segment_ids=ctx.segments, form=ctx.form
        )
        y = self.qkv.o(self.norm(o) * jax.nn.silu(self.gate(x)))
        return y, None if state is None else after, ctx

    def from_attention(self, attention: Attention) -> Self:
        """q, k, v and o of the teacher, its key heads repeated; decays, the gate and the norm are new. Returns self."""
        copy_projections(attention, q=self.qkv.q, k=self.qkv.k, v=self.qkv.v, o=self.qkv.o)
        return self
