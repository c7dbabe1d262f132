"""The Sparse Transformer (1904.10509), its two factorised patterns merged into one head.

    strided: the query at position i sees j <= i with i - j < l or (i - j) mod l = 0
    fixed:   j <= i in its own block of l positions, and the last c positions of every block before

Departs from the paper in its rotary positions and grouped heads; the paper also has patterns that alternate over layers
or heads. Time is O(T (l + T / l)) strided and O(T (l + c T / l)) fixed: the paper takes l near sqrt(T), so O(T sqrt T).
The default l of 256 keeps what grows below what does not up to T = 131k.
"""

from typing import ClassVar, Literal, Self

import jax.numpy as jnp
import pydantic
from flax import nnx

from effarch.mixers.base import LayerInfo
from effarch.mixers.softmax_attention import SoftmaxAttention
from effarch.mixers.sparse_attention import SparseAttention
from effarch.ops.attention import Line, Visibility, merge, strided_attention
from effarch.ops.attention.blockwise import attention_and_logsumexp
from effarch.ops.attention.line import flagged, gather
from effarch.registry import register
from effarch.typing import Array, Bool, Int


@register("sparse_transformer", kind="mixer")
class SparseTransformer(SoftmaxAttention):
    """Causal attention to the near past and to every l-th token, or to blocks and their summaries."""

    paper: ClassVar[str] = "1904.10509 Generating Long Sequences with Sparse Transformers"

    pattern: Literal["strided", "fixed"] = pydantic.Field("strided", description="which of the paper's two patterns")
    stride: int = pydantic.Field(256, gt=0, description="l: tokens between those seen, and of the window or block")
    summary: int = pydantic.Field(8, gt=0, description="c: last tokens of a block seen from all later ones (fixed)")

    @pydantic.model_validator(mode="after")
    def _fits(self) -> Self:
        if self.pattern == "fixed" and self.summary > self.stride:
            raise ValueError(f"summary: expected at most the stride {self.stride}, got {self.summary}")
        return self

    def make(self, dim: int, *, layer: LayerInfo, rngs: nnx.Rngs) -> "SparseTransformerMixer":
        return SparseTransformerMixer(self, dim, layer=layer, rngs=rngs)

    def flops(self, dim: int, time: int) -> int:
        stride = self.stride
        wholes, rest = divmod(time, stride)
        if self.pattern == "strided":
            near = sum(range(1, min(time, stride) + 1)) + max(time - stride, 0) * stride
            far = stride * wholes * (wholes - 1) // 2 + rest * wholes
        else:
            near = wholes * stride * (stride + 1) // 2 + rest * (rest + 1) // 2
            far = self.summary * (stride * wholes * (wholes - 1) // 2 + rest * wholes)
        return time * self.projection_flops(dim) + 4 * self.num_heads * self.head_dim * (near + far)

    @classmethod
    def tiny(cls) -> tuple[Self, int]:
        return cls(num_heads=4, num_kv_heads=2, head_dim=8, stride=7, summary=2), 32


class SparseTransformerMixer(SparseAttention):
    """The module; see the file. Its state is the KV cache."""

    config: SparseTransformer

    def seen(self, q: Array, line: Line) -> Bool[Array, "B T L"]:
        stride, c = self.config.stride, self.config.summary

        def strided(i: Array, j: Array) -> Array:
            return (j <= i) & ((i - j < stride) | ((i - j) % stride == 0))

        def fixed(i: Array, j: Array) -> Array:
            return (j <= i) & ((i // stride == j // stride) | (j % stride >= stride - c))

        return line.seen(strided if self.config.pattern == "strided" else fixed)

    def sparse(self, q: Array, line: Line) -> Array:
        stride, c = self.config.stride, self.config.summary
        if self.config.pattern == "strided":
            near = line.window(q, stride, scale=self.scale)
            return merge([near, strided_attention(q, line, stride, behind=stride, scale=self.scale)])
        summary = (line.run > 0) & (line.position % stride >= stride - c)
        last, there = flagged(summary, max(1, line.run.shape[1] * c // stride))  # no document has more for its length
        k, v, run, position = (gather(x, last) for x in (line.k, line.v, line.run, line.position))
        past = Visibility(line.run_q, line.position_q // stride - 1, jnp.where(there, run, 0), position // stride)
        far = attention_and_logsumexp(q, k, v, past, scale=self.scale)
        return merge([line.own_piece(q, stride, scale=self.scale), far])

    def slots(self, position: Int[Array, " B"], length: int) -> tuple[Int[Array, "B 1 M"], Bool[Array, "B 1 M"]]:
        stride, c = self.config.stride, self.config.summary
        now, near = position[:, None], jnp.arange(stride, dtype=jnp.int32)[None]
        blocks = jnp.arange(-(-length // stride), dtype=jnp.int32)[None]
        if self.config.pattern == "strided":
            slot = jnp.concatenate([now - near, now - stride * (blocks + 1)], axis=1)
            return slot[:, None], (slot >= 0)[:, None]
        inside = now // stride * stride + near
        last = (blocks[..., None] * stride + jnp.arange(stride - c, stride, dtype=jnp.int32)[None, None]).reshape(1, -1)
        last, past = jnp.broadcast_to(last, (now.shape[0], last.shape[1])), last // stride < now // stride
        there = jnp.concatenate([inside <= now, past], axis=1)
        return jnp.concatenate([inside, last], axis=1)[:, None], there[:, None]
