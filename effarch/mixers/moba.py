"""Mixture of Block Attention (2502.13189): every query head attends to its own block and to the best k - 1 before it.

    o_i = softmax attention over the keys j <= i in i's block, and over all keys of the k - 1 past blocks m with the
          greatest q_i . mean_{j in m} k_j

Keys are averaged after rotation; the choice passes no gradient. Blocks are counted from each document's start. Time is
O(T k C), and O(T^2 / C) for the products with the means, which at C = 512 overtake the rest beyond T = 1M.
"""

from typing import ClassVar, Self

import pydantic
from flax import nnx

from effarch.mixers.base import LayerInfo
from effarch.mixers.sparse_attention import BlockAttention, ChoosingAttention
from effarch.ops.attention import Line, merge, selected_attention
from effarch.registry import register
from effarch.typing import Array


@register("moba", kind="mixer")
class MoBA(BlockAttention):
    """Causal attention to one's own block and to chosen ones."""

    paper: ClassVar[str] = "2502.13189 MoBA: Mixture of Block Attention for Long-Context LLMs"

    block_size: int = pydantic.Field(512, gt=0, description="C: tokens of a block")
    top_k: int = pydantic.Field(3, gt=0, description="blocks seen, one's own included")

    def make(self, dim: int, *, layer: LayerInfo, rngs: nnx.Rngs) -> "MoBAMixer":
        return MoBAMixer(self, dim, layer=layer, rngs=rngs)

    def flops(self, dim: int, time: int) -> int:
        pairs = 2 * self.block_pairs(time, self.top_k - 1) + time * (time // self.block_size)
        return time * self.projection_flops(dim) + 2 * self.num_heads * self.head_dim * pairs

    @classmethod
    def tiny(cls) -> tuple[Self, int]:
        return cls(num_heads=4, num_kv_heads=2, head_dim=8, block_size=16, top_k=3), 32


class MoBAMixer(ChoosingAttention):
    """The module; see the file. Its state: the KV cache, and the means of its blocks' keys."""

    config: MoBA

    @property
    def others(self) -> int:
        return self.config.top_k - 1

    def score(self, logits: Array, distance: Array, number: Array) -> Array:
        return logits.reshape(logits.shape[0], -1, *logits.shape[3:])  # one list for each query head

    def sparse(self, q: Array, line: Line) -> Array:
        blocks, index = self.chosen(q, line)
        own = line.own_piece(q, self.config.block_size, scale=self.scale)
        return merge([own, selected_attention(q, blocks.k, blocks.v, index, scale=self.scale)])
