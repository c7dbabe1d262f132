"""BigBird (2007.14062), made causal: a window of blocks, the document's first block, and random blocks.

    o_i = softmax attention over the keys j <= i in i's block b, and over all keys of the blocks b - 1, ..., b - w + 1,
          of block 0, and of r random blocks between

Departs from the paper, which is not causal: its window of 3 blocks is b and one on either side, here b and those
before; its last block, global too, does not exist yet; its global tokens see everything, here the first block sees
itself. Random blocks are drawn for each block of queries and key head, one from each of r equal parts of the blocks
between the first and the window, so that none is drawn twice; block b has the same ones in every document, row and
call. Time is O(T C (w + r)), memory O(T).
"""

from typing import ClassVar, Self

import jax
import jax.numpy as jnp
import pydantic
from flax import nnx

from effarch.mixers.base import LayerInfo
from effarch.mixers.sparse_attention import BlockAttention, SparseAttention
from effarch.ops.attention import Blocks, Line, merge, selected_attention
from effarch.ops.attention.choice import blocks_of
from effarch.registry import register
from effarch.typing import Array, Bool, Int

DRAWN = 1024  # blocks of a document after which the random numbers repeat (of what then is another stretch)


@register("bigbird", kind="mixer")
class BigBird(BlockAttention):
    """Causal attention to near, first and random blocks."""

    paper: ClassVar[str] = "2007.14062 Big Bird: Transformers for Longer Sequences"

    window: int = pydantic.Field(3, gt=0, description="w: blocks of the window, one's own included")
    random: int = pydantic.Field(3, ge=0, description="r: random blocks")
    seed: int = pydantic.Field(0, ge=0, description="of the random blocks; every layer draws its own")

    def make(self, dim: int, *, layer: LayerInfo, rngs: nnx.Rngs) -> "BigBirdMixer":
        return BigBirdMixer(self, dim, layer=layer, rngs=rngs)

    def flops(self, dim: int, time: int) -> int:
        pairs = self.block_pairs(time, self.window + self.random)
        return time * self.projection_flops(dim) + 4 * self.num_heads * self.head_dim * pairs

    @classmethod
    def tiny(cls) -> tuple[Self, int]:
        return cls(num_heads=4, num_kv_heads=2, head_dim=8, block_size=7, window=2, random=2), 32


class BigBirdMixer(SparseAttention):
    """The module; see the file. Its state is the KV cache."""

    config: BigBird

    def __init__(self, config: BigBird, dim: int, *, layer: LayerInfo, rngs: nnx.Rngs) -> None:
        super().__init__(config, dim, layer=layer, rngs=rngs)
        key = jax.random.fold_in(jax.random.key(config.seed), layer.index)
        drawn = jax.random.randint(key, (DRAWN, config.num_kv_heads, config.random), 0, jnp.iinfo(jnp.int32).max)
        self.drawn = nnx.Variable(drawn.astype(jnp.int32), axes=(None, "heads", None))  # fixed

    def lists(self, own: Int[Array, "..."]) -> Int[Array, "... Hk M"]:
        """Which blocks of the document the queries of block ``own`` see beside it; negative: none."""
        c = self.config
        drawn, own = self.drawn[...][own % DRAWN], own[..., None, None]
        ahead = (None,) * (own.ndim - 1)
        near = own - jnp.arange(1, c.window, dtype=jnp.int32)[ahead]
        first = jnp.where(own >= c.window, 0, -1)
        between = jnp.maximum(own - c.window, 0)  # blocks 1, ..., own - window
        part = jnp.arange(c.random, dtype=jnp.int32)[ahead]
        start, end = between * part // max(c.random, 1), between * (part + 1) // max(c.random, 1)
        drawn = jnp.where(end > start, 1 + start + drawn % jnp.maximum(end - start, 1), -1)
        fixed = jnp.concatenate([near, first], axis=-1)
        fixed = jnp.broadcast_to(fixed, (*drawn.shape[:-1], fixed.shape[-1]))
        return jnp.concatenate([fixed, drawn], axis=-1)

    def chosen(self, line: Line) -> tuple[Blocks, Int[Array, "B T Hk M"]]:
        """The blocks of a line, and which of them its queries see."""
        blocks = Blocks.of(line, self.config.block_size)
        number = self.lists(line.position_q // self.config.block_size)
        there = (number >= 0) & (line.run_q > 0)[:, :, None, None]
        return blocks, jnp.where(there, blocks.first[:, :, None, None] + number, -1)

    def seen(self, q: Array, line: Line) -> Bool[Array, "B Hk 1 T L"]:
        blocks, index = self.chosen(line)
        return blocks.chosen(index) | line.pieces(self.config.block_size).pairs()[:, None, None]

    def sparse(self, q: Array, line: Line) -> Array:
        blocks, index = self.chosen(line)
        own = line.own_piece(q, self.config.block_size, scale=self.scale)
        return merge([own, selected_attention(q, blocks.k, blocks.v, index, scale=self.scale)])

    def slots(self, position: Int[Array, " B"], length: int) -> tuple[Int[Array, "B Hk M"], Bool[Array, "B Hk M"]]:
        own = position // self.config.block_size
        lists = self.lists(own)
        whole = jnp.concatenate([jnp.broadcast_to(own[:, None, None], (*lists.shape[:2], 1)), lists], axis=2)
        slot, there = blocks_of(whole, self.config.block_size)
        return slot, there & (slot <= position[:, None, None])
