"""Longformer (2004.05150), not causal, for encoders: symmetric windows dilated by head, and global tokens.

    o_i = softmax attention over  q_i . k_j, v_j,  |i - j| = m d_h, m = 0, ..., w / 2, of head h's dilation d_h,
          and j < g, the first tokens of the document                                      (i a local token)
    o_i = softmax attention over  q'_i . k'_j, v'_j,  all j of the document                (i a global token, i < g)

q', k' and v' are projections of their own, and start as q, k and v where weights are taken over. The authors take any
tokens to be global (the first of a text to be classified, a question); here they are the first g of every document.
Their model has learned position embeddings, so no rotation is the default. Time is O(T (w + g)), memory O(T).
"""

from typing import ClassVar, Self

import jax.numpy as jnp
import pydantic
from flax import nnx

from effarch.mixers.base import Context, LayerInfo
from effarch.mixers.longformer import Longformer, read, split
from effarch.mixers.softmax_attention import Attention
from effarch.nn.qkv import Projections
from effarch.ops.attention import Dilated, Visibility, attention, blockwise_attention, lay_out
from effarch.ops.attention.line import block_for
from effarch.registry import register
from effarch.typing import Array


@register("longformer_encoder", kind="mixer")
class LongformerEncoder(Longformer):
    """Softmax attention to a window around each token, dilated by head, and to and from the first tokens.

    Not split over devices: its windows hold tokens after a shard, too, and its first tokens see every shard.
    """

    causal: ClassVar[bool] = False
    context_parallel: ClassVar[bool] = False
    recurrent: ClassVar[bool] = False
    forms: ClassVar[tuple[str, ...]] = ("parallel", "chunkwise")

    num_heads: int = pydantic.Field(12, gt=0, description="query heads")
    num_kv_heads: int = pydantic.Field(12, gt=0, description="key and value heads; divides num_heads")
    rope_theta: float | None = pydantic.Field(None, gt=0, description="base of rotary wavelengths; null: no rotation")
    qkv_bias: bool = pydantic.Field(True, description="biases on q, k and v, both of each")
    out_bias: bool = pydantic.Field(True, description="bias on the output projection")
    window: int = pydantic.Field(
        512, gt=0, multiple_of=2, description="w: tokens that a head sees beside its own, half before, half after"
    )
    global_tokens: int = pydantic.Field(1, ge=0, description="g: first tokens of the document, seen by and seeing all")

    @property
    def windows(self) -> Dilated:
        return Dilated(self.window + 1, self.dilations, ahead=self.window // 2)

    def make(self, dim: int, *, layer: LayerInfo, rngs: nnx.Rngs) -> "LongformerEncoderMixer":
        return LongformerEncoderMixer(self, dim, layer=layer, rngs=rngs)

    def flops(self, dim: int, time: int) -> int:
        first = min(self.global_tokens, time)
        pairs = self.windows.pairs(time, first) + first * (2 * time - first)
        again = 2 * dim * self.head_dim * (self.num_heads + 2 * self.num_kv_heads) if first else 0
        return time * (self.projection_flops(dim) + again) + round(4 * self.num_heads * self.head_dim * pairs)

    @classmethod
    def tiny(cls) -> tuple[Self, int]:
        sizes = {"num_heads": 4, "num_kv_heads": 2, "head_dim": 8}
        return cls(**sizes, window=4, dilations=(1, 3), global_tokens=2, rope_theta=1e4), 32


class LongformerEncoderMixer(Attention):
    """The module; see the file. It carries no state: a row is whole."""

    config: LongformerEncoder

    def __init__(self, config: LongformerEncoder, dim: int, *, layer: LayerInfo, rngs: nnx.Rngs) -> None:
        super().__init__(config, dim, layer=layer, rngs=rngs)
        width = {"key_dim": config.head_dim, "value_dim": config.head_dim}
        heads = {"heads": config.num_heads, "kv_heads": config.num_kv_heads}
        far = config.global_tokens > 0
        self.far = Projections(dim, **heads, **width, bias=config.qkv_bias, rngs=rngs) if far else None

    def _projected(self, projections: Projections, x: Array, ctx: Context) -> tuple[Array, Array, Array]:
        q, k, v = self.project(x, projections)
        return self.rotate(q, ctx), self.rotate(k, ctx), v

    def __call__(self, x: Array, state: tuple | None, ctx: Context) -> tuple[Array, tuple | None, Context]:
        c = self.config
        q, k, v = self._projected(self.qkv, x, ctx)
        line, _ = lay_out(k, v, ctx.segments)
        rest, run = split(line, c.global_tokens)
        first = k, v, Visibility(line.run_q, line.position_q, run, line.position_q, causal=False)
        o = read(q, rest, c.windows, first, tokens=c.global_tokens, form=ctx.form)
        if self.far is not None:
            far = self._projected(self.far, x, ctx)
            whole = Visibility(run, line.position_q, line.run_q, line.position_q, causal=False)
            if ctx.form == "parallel":
                seen = attention(*far, visibility=whole)
            else:  # blocks of queries that hold no global token see no block of keys
                seen = blockwise_attention(*far, visibility=whole, block_size=block_for(c.global_tokens))
            o = jnp.where((run > 0)[:, :, None, None], seen, o)
        return self.output(o, x), state, ctx

    def from_attention(self, attention: Attention) -> Self:
        super().from_attention(attention)
        if self.far is not None:
            for name in ("q", "k", "v"):
                mine, same = getattr(self.far, name), getattr(self.qkv, name)
                mine.kernel[...] = same.kernel[...]
                if mine.bias is not None:
                    mine.bias[...] = same.bias[...]
        return self
