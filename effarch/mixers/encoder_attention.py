"""Softmax attention (1706.03762) over both directions of time: that of encoders, BERT (1810.04805), ViT (2010.11929).

    o_t = sum_s softmax_s(q_t . k_s / sqrt(K)) v_s        over every token s of t's document        y_t = W_o o_t

Options are those of causal attention. Learned position embeddings are a matter of the model, so no rotation is the
default; biases are. O(T^2) time, O(T) memory. The teacher of every distillation of an encoder.
"""

from typing import ClassVar, Self

import pydantic
from flax import nnx

from effarch.mixers.base import Context, LayerInfo
from effarch.mixers.softmax_attention import Attention, SoftmaxAttention
from effarch.ops.attention import softmax_attention
from effarch.registry import register
from effarch.typing import Array


@register("encoder_attention", kind="mixer")
class EncoderAttention(SoftmaxAttention):
    """Softmax attention that is not causal. Defaults are those of BERT and ViT, base."""

    causal: ClassVar[bool] = False
    forms: ClassVar[tuple[str, ...]] = ("parallel", "chunkwise")

    num_heads: int = pydantic.Field(12, gt=0, description="query heads")
    num_kv_heads: int = pydantic.Field(12, gt=0, description="key and value heads; divides num_heads")
    rope_theta: float | None = pydantic.Field(None, gt=0, description="base of rotary wavelengths; null: no rotation")
    qkv_bias: bool = pydantic.Field(True, description="biases on q, k and v")
    out_bias: bool = pydantic.Field(True, description="bias on the output projection")

    def make(self, dim: int, *, layer: LayerInfo, rngs: nnx.Rngs) -> "EncoderAttentionMixer":
        return EncoderAttentionMixer(self, dim, layer=layer, rngs=rngs)

    def flops(self, dim: int, time: int) -> int:
        return time * self.projection_flops(dim) + 4 * self.num_heads * self.head_dim * time * time

    @classmethod
    def tiny(cls) -> tuple[Self, int]:
        return cls(num_heads=4, num_kv_heads=2, head_dim=8, rope_theta=1e4), 32


class EncoderAttentionMixer(Attention):
    """The module; see the file. It carries no state: a row is whole."""

    def __call__(self, x: Array, state: tuple | None, ctx: Context) -> tuple[Array, tuple | None, Context]:
        q, k, v = self.project(x)
        q, k = self.rotate(q, ctx), self.rotate(k, ctx)
        cap = self.config.logit_cap
        o = softmax_attention(q, k, v, form=ctx.form, causal=False, segment_ids=ctx.segments, cap=cap)
        return self.output(o, x), state, ctx
