"""The Forgetting Transformer (2503.02130), FoX: softmax attention with a forget gate per head.

    o_i = sum_{j <= i} softmax_j(q_i . k_j / sqrt(K) + c_i - c_j) v_j     c_t = sum_{s <= t} log sigmoid(W_f x_s + b_f)

No rotary positions by default: the gate tells near from far. Of the paper's "Pro" block, ``gate`` and ``qk_norm`` are
the output gate and the norms of q and k (with one weight for all heads); keys and values are not mixed with those of
the token before.
Time is O(T^2), as softmax attention's.
"""

from typing import ClassVar, Self

import jax
import jax.numpy as jnp
import pydantic
from flax import nnx

from effarch.mixers.base import Context, LayerInfo
from effarch.mixers.softmax_attention import Attention, SoftmaxAttention
from effarch.nn.linear import Linear
from effarch.ops.attention import KVCache, forgetting_attention
from effarch.ops.precision import accumulator
from effarch.registry import register
from effarch.typing import Array

REMEMBERED = 1000  # tokens after which a converted teacher has forgotten all but 1/e


@register("forgetting_attention", kind="mixer")
class ForgettingAttention(SoftmaxAttention):
    """Causal softmax attention that forgets."""

    paper: ClassVar[str] = "2503.02130 Forgetting Transformer: Softmax Attention with a Forget Gate"
    caps_logits: ClassVar[bool] = False

    rope_theta: float | None = pydantic.Field(None, gt=0, description="base of the rotary wavelengths; null: none")

    def make(self, dim: int, *, layer: LayerInfo, rngs: nnx.Rngs) -> "ForgettingAttentionMixer":
        return ForgettingAttentionMixer(self, dim, layer=layer, rngs=rngs)

    def projection_flops(self, dim: int) -> int:
        return super().projection_flops(dim) + 2 * dim * self.num_heads

    @classmethod
    def tiny(cls) -> tuple[Self, int]:
        return cls(num_heads=4, num_kv_heads=2, head_dim=8, qk_norm=True, gate=True), 32


class ForgettingAttentionMixer(Attention):
    """The module; see the file. Its state: the KV cache, and the log-decay since each key [B, S, H] float32."""

    config: ForgettingAttention

    def __init__(self, config: ForgettingAttention, dim: int, *, layer: LayerInfo, rngs: nnx.Rngs) -> None:
        super().__init__(config, dim, layer=layer, rngs=rngs)
        self.forget = Linear(dim, config.num_heads, axes=("embed", "heads"), bias=True, rngs=rngs)

    def init_state(self, batch_size: int, max_length: int) -> tuple[KVCache, Array]:
        c = self.config
        cache = KVCache.init(batch_size, max_length, c.num_kv_heads, c.head_dim, c.head_dim, self.dtype)
        return cache, jnp.zeros((batch_size, max_length, c.num_heads), jnp.float32)

    def __call__(self, x: Array, state: tuple | None, ctx: Context) -> tuple[Array, tuple | None, Context]:
        q, k, v = self.project(x)
        q, k = self.rotate(q, ctx), self.rotate(k, ctx)
        log_decay = jax.nn.log_sigmoid(self.forget(x).astype(accumulator(x)))
        o, state = forgetting_attention(q, k, v, log_decay, state, ctx.segments, form=ctx.form)
        return self.output(o, x), state, ctx

    def from_attention(self, attention: Attention) -> Self:
        """The teacher's projections and norms, and a gate that forgets slowly whatever the token. Returns self."""
        self.forget.kernel[...] = jnp.zeros_like(self.forget.kernel[...])
        if self.forget.bias is not None:
            self.forget.bias[...] = jnp.full_like(self.forget.bias[...], jnp.log(REMEMBERED))
        return super().from_attention(attention)
