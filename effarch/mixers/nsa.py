"""Native Sparse Attention (2502.11089), with pooling as in flash-linear-attention.

    y_i = W_o sum over the branches of g_i o_i,   g_i = sigmoid(W_g x_i) for each head and branch
    compressed: attention to the means of keys and values of every whole block of C positions that has ended by i
    selected:   attention to one's own block and to n - 1 before it: the first, the previous, and those to which the
                compressed branch gives the most, its probabilities summed over the query heads of a group
    window:     attention to the last w positions

Departs from the paper: means instead of a learned MLP over blocks of 32 every 16, and one k and v for all branches. The
choice passes no gradient; blocks are counted from each document's start. Time is O(T (n C + w)), and O(T^2 / C) for
the compressed branch: at the defaults it is the lesser part up to T = 196k.
"""

from typing import ClassVar, Self

import jax
import jax.numpy as jnp
import pydantic
from flax import nnx

from effarch.mixers.base import LayerInfo
from effarch.mixers.sparse_attention import BlockAttention, ChoosingAttention, mean
from effarch.nn.linear import Linear
from effarch.ops.attention import Line, Visibility, attention, merge, read_slots, selected_attention
from effarch.ops.attention.blockwise import attention_and_logsumexp
from effarch.ops.segments import Segments
from effarch.registry import register
from effarch.typing import Array, Float

FORCED = 1e9  # more than any sum of probabilities


@register("nsa", kind="mixer")
class NSA(BlockAttention):
    """Causal attention to pooled blocks, to chosen blocks and to a window."""

    paper: ClassVar[str] = "2502.11089 Native Sparse Attention: Hardware-Aligned and Natively Trainable"

    num_heads: int = pydantic.Field(64, gt=0, description="query heads")
    num_kv_heads: int = pydantic.Field(4, gt=0, description="key and value heads; divides num_heads")
    top_n: int = pydantic.Field(16, ge=3, description="blocks selected: one's own, the one before, the first, the best")
    window: int = pydantic.Field(512, gt=0, description="tokens of the window, its own included")

    def make(self, dim: int, *, layer: LayerInfo, rngs: nnx.Rngs) -> "NSAMixer":
        return NSAMixer(self, dim, layer=layer, rngs=rngs)

    def projection_flops(self, dim: int) -> int:
        return super().projection_flops(dim) + 2 * dim * 3 * self.num_heads

    def flops(self, dim: int, time: int) -> int:
        size = self.block_size
        wholes, rest = divmod(time, size)
        near = sum(range(1, min(time, self.window) + 1)) + max(time - self.window, 0) * self.window
        pooled = size * wholes * (wholes - 1) // 2 + wholes * (rest + 1)
        pairs = 2 * (self.block_pairs(time, self.top_n - 1) + near + pooled)
        pairs += time * (time // size)  # the compressed branch's products once more, to choose by
        return time * self.projection_flops(dim) + 2 * self.num_heads * self.head_dim * pairs

    @classmethod
    def tiny(cls) -> tuple[Self, int]:
        return cls(num_heads=4, num_kv_heads=2, head_dim=8, block_size=9, top_n=4, window=7), 32


class NSAMixer(ChoosingAttention):
    """The module; see the file. Its state: the KV cache, and one of the means of its blocks."""

    config: NSA
    pooled: ClassVar[tuple[str, ...]] = ("k", "v")

    def __init__(self, config: NSA, dim: int, *, layer: LayerInfo, rngs: nnx.Rngs) -> None:
        super().__init__(config, dim, layer=layer, rngs=rngs)
        self.branches = Linear(dim, (config.num_heads, 3), axes=("embed", "heads", None), rngs=rngs)

    @property
    def others(self) -> int:
        return self.config.top_n - 1

    def score(self, logits: Array, distance: Array, number: Array) -> Array:
        logits = jnp.where((distance >= 0)[:, None, None], logits * self.scale, -jnp.inf)
        weights = jnp.exp(logits - jnp.maximum(logits.max(axis=-1, keepdims=True), -1e30))
        total = weights.sum(axis=-1, keepdims=True)
        given = (weights / jnp.where(total > 0, total, 1)).sum(axis=2)
        return given + jnp.where((distance == 1) | (number == 0), FORCED, 0).astype(given.dtype)[:, None]

    def ended(self, run_q: Array, position_q: Array, run: Array, number: Array) -> Visibility:
        """Queries see the means of the blocks that have ended, with their own token at the latest."""
        size = self.config.block_size
        return Visibility(run_q, position_q, run, number * size + size - 1)

    def whole(self, q: Array, line: Line, form: str) -> Float[Array, "B T H 3 V"]:
        c, scale = self.config, self.scale
        blocks, index = self.chosen(q, line)
        means = mean(blocks.k), mean(blocks.v)
        ended = self.ended(line.run_q, line.position_q, blocks.run, blocks.number)
        if form == "parallel":
            own = line.pieces(c.block_size).pairs()[:, None, None]
            compressed = attention(q, *means, visibility=ended, scale=scale)
            selected = line.dense(q, blocks.chosen(index) | own, scale=scale)
            near = line.dense(q, line.seen(lambda i, j: (j <= i) & (j > i - c.window)), scale=scale)
        else:
            compressed, _ = attention_and_logsumexp(q, *means, ended, scale=scale)
            chosen = selected_attention(q, blocks.k, blocks.v, index, scale=scale)
            selected = merge([line.own_piece(q, c.block_size, scale=scale), chosen])
            near, _ = line.window(q, c.window, scale=scale)
        return jnp.stack([compressed, selected, near], axis=3)

    def decode(self, q: Array, k: Array, v: Array, state: tuple, segments: Segments) -> tuple[Array, tuple]:
        cache, means = self.append(k, v, state, segments)
        run, now = segments.real.astype(jnp.int32), segments.position
        number = jnp.broadcast_to(jnp.arange(means[0].shape[1], dtype=jnp.int32), means[0].shape[:2])
        ended = self.ended(run, now, jnp.ones_like(number), number)
        compressed = attention(q, *(x.astype(q.dtype) for x in means), visibility=ended, scale=self.scale)
        selected = read_slots(q, cache, *self.own_and_chosen(q, means[0], segments), scale=self.scale)
        slot = (now - jnp.arange(self.config.window, dtype=jnp.int32)[None])[:, None]
        near = read_slots(q, cache, slot, (slot >= 0) & segments.real[:, :, None], scale=self.scale)
        return jnp.stack([compressed, selected, near], axis=3), (cache, means)

    def output(self, o: Float[Array, "B T H 3 V"], x: Array) -> Array:
        gates = jax.nn.sigmoid(self.branches(x))
        return super().output((o * gates[..., None]).sum(axis=3), x)
