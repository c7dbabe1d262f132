"""What the mixers of sparse attention share: one projection, one line of documents, three ways to read it."""

from typing import ClassVar, cast

import jax.numpy as jnp
import pydantic
from flax import nnx
from jax.sharding import Mesh

from effarch import axes
from effarch.mixers.base import Context
from effarch.mixers.softmax_attention import Attention, SoftmaxAttention
from effarch.ops.attention import (
    Blocks,
    KVCache,
    Line,
    append,
    block_means,
    choose_blocks,
    lay_out,
    next_mean,
    over_gathered_keys,
    read_slots,
    row_segments,
)
from effarch.ops.attention.cache import resume
from effarch.ops.attention.choice import blocks_of
from effarch.ops.precision import accumulator
from effarch.ops.segments import Segments
from effarch.typing import Array, Bool, Float, Int, PyTree


class BlockAttention(SoftmaxAttention):
    """Config of attention to whole blocks of positions."""

    caps_logits: ClassVar[bool] = False

    block_size: int = pydantic.Field(64, gt=0, description="C: tokens of a block")

    def block_pairs(self, time: int, others: int) -> int:
        """Pairs of query and key in a row of ``time`` tokens: of one's own block, and of at most ``others`` before."""
        size = self.block_size
        wholes, rest = divmod(time, size)
        own = wholes * size * (size + 1) // 2 + rest * (rest + 1) // 2
        return own + size * sum((size if n < wholes else rest) * min(n, others) for n in range(wholes + 1))


class SparseAttention(Attention):
    """Causal attention to a pattern of positions, which a subclass says three times over.

    ``seen``: as a mask, for the parallel form. ``sparse``: in time that of the pairs kept. ``slots``: as the list that
    one query reads from the cache. Of a row that is split over devices, keys and values are gathered, queries not.
    """

    @property
    def scale(self) -> float:
        """Of the logits."""
        return self.config.head_dim**-0.5

    def seen(self, q: Array, line: Line) -> Bool[Array, "B ... T L"]:
        """Which keys of the line each query sees, as `reference.mix` takes it."""
        raise NotImplementedError(f"{type(self).__name__} has no seen")

    def sparse(self, q: Array, line: Line) -> Array:
        """Attention of the queries to the line."""
        raise NotImplementedError(f"{type(self).__name__} has no sparse")

    def slots(self, position: Int[Array, " B"], length: int) -> tuple[Int[Array, "B Hs M"], Bool[Array, "B Hs M"]]:
        """Positions seen from ``position`` in a cache of ``length`` slots, each once, and which of them there are."""
        raise NotImplementedError(f"{type(self).__name__} has no slots")

    def init_state(self, batch_size: int, max_length: int) -> PyTree:
        c = self.config
        return KVCache.init(batch_size, max_length, c.num_kv_heads, c.head_dim, c.head_dim, self.dtype)

    def whole(self, q: Array, line: Line, form: str) -> Array:
        """Attention of many queries, in one form or the other."""
        return line.dense(q, self.seen(q, line), scale=self.scale) if form == "parallel" else self.sparse(q, line)

    def prefill(self, k: Array, v: Array, state: PyTree, segments: Segments | None) -> tuple[Line, PyTree]:
        """The keys of a row after those carried, and the next state."""
        return lay_out(k, v, segments, state)

    def decode(self, q: Array, k: Array, v: Array, state: PyTree, segments: Segments) -> tuple[Array, PyTree]:
        """One token."""
        state = append(state, k, v, segments)
        slot, there = self.slots(segments.position[:, 0], state.k.shape[1])
        return read_slots(q, state, slot, there & segments.real[:, :, None], scale=self.scale), state

    def __call__(self, x: Array, state: PyTree | None, ctx: Context) -> tuple[Array, PyTree | None, Context]:
        q, k, v = self.project(x)
        q, k = self.rotate(q, ctx), self.rotate(k, ctx)
        if state is not None and x.shape[1] == 1:
            o, state = self.decode(q, k, v, state, resume(self.cache(state), k, v, ctx.segments))
        elif state is None and ctx.form == "chunkwise" and (split := axes.context_parallel(x.shape[1])) is not None:
            o = self._split(q, k, v, row_segments(ctx.segments, *x.shape[:2]), *split)
        else:
            line, state = self.prefill(k, v, state, ctx.segments)
            o = self.whole(q, line, ctx.form)
        return self.output(o, x), state, ctx

    def _split(self, q: Array, k: Array, v: Array, row: Segments, mesh: Mesh, axis: str) -> Array:
        graph, parameters, fixed = nnx.split(self, nnx.Param, ...)

        def read(q: Array, line: Line, fixed: PyTree) -> Array:
            return nnx.merge(graph, parameters, fixed).whole(q, line, "chunkwise")  # no parameter is read there

        return over_gathered_keys(read, q, k, v, row, fixed, mesh=mesh, axis=axis)

    def cache(self, state: PyTree) -> KVCache:
        """The keys and values of a state."""
        return state


class ChoosingAttention(SparseAttention):
    """Queries that choose blocks of ``block_size`` by the means of their keys, and see their own up to themselves.

    A subclass says how many others each list has, ``others``, and what makes one the better, ``score``. The state: the
    KV cache, and the means of its blocks [B, S // block_size, Hk, K] of what ``pooled`` names.
    """

    pooled: ClassVar[tuple[str, ...]] = ("k",)

    @property
    def block_size(self) -> int:
        """C, of the config."""
        return cast(BlockAttention, self.config).block_size

    @property
    def others(self) -> int:
        """Blocks in a list, one's own not among them."""
        raise NotImplementedError(f"{type(self).__name__} has no others")

    def score(self, logits: Array, distance: Array, number: Array) -> Array:
        """As `choose_blocks` takes it."""
        raise NotImplementedError(f"{type(self).__name__} has no score")

    def choose(self, q: Array, means: Array, run_q: Array, position_q: Array, run: Array, number: Array) -> Array:
        """Indices ``[B, T, Hs, others]`` of the blocks chosen."""
        at = {"run_q": run_q, "position_q": position_q, "run": run, "number": number}
        return choose_blocks(q, means, **at, size=self.block_size, count=self.others, score=self.score)

    def chosen(self, q: Array, line: Line) -> tuple[Blocks, Int[Array, "B T Hs M"]]:
        """The blocks of a line, and which of them its queries choose."""
        blocks = Blocks.of(line, self.block_size)
        return blocks, self.choose(q, mean(blocks.k), line.run_q, line.position_q, blocks.run, blocks.number)

    def seen(self, q: Array, line: Line) -> Bool[Array, "B Hk R T L"]:
        blocks, index = self.chosen(q, line)
        return blocks.chosen(index) | line.pieces(self.block_size).pairs()[:, None, None]

    def init_state(self, batch_size: int, max_length: int) -> tuple[KVCache, tuple[Array, ...]]:
        return self._with_means(super().init_state(batch_size, max_length))

    def _with_means(self, cache: KVCache) -> tuple[KVCache, tuple[Array, ...]]:
        held = [getattr(cache, name) for name in self.pooled]
        return cache, tuple(block_means(x, cache.length, self.block_size).astype(x.dtype) for x in held)

    def cache(self, state: tuple) -> KVCache:
        return state[0]

    def prefill(self, k: Array, v: Array, state: tuple | None, segments: Segments | None) -> tuple[Line, tuple | None]:
        line, after = lay_out(k, v, segments, None if state is None else state[0])
        return line, None if after is None else self._with_means(after)

    def append(self, k: Array, v: Array, state: tuple, segments: Segments) -> tuple[KVCache, tuple[Array, ...]]:
        """The state after one token."""
        cache, size = append(state[0], k, v, segments), self.block_size
        pairs = zip(state[1], self.pooled, strict=True)
        return cache, tuple(next_mean(means, getattr(cache, name), cache.length, size) for means, name in pairs)

    def decode(self, q: Array, k: Array, v: Array, state: tuple, segments: Segments) -> tuple[Array, tuple]:
        state = self.append(k, v, state, segments)
        slot, there = self.own_and_chosen(q, state[1][0], segments)
        return read_slots(q, state[0], slot, there, scale=self.scale), state

    def own_and_chosen(
        self, q: Array, means: Array, row: Segments
    ) -> tuple[Int[Array, "B Hs M"], Bool[Array, "B Hs M"]]:
        """The slots of one query's own block and of those it chooses."""
        size, now = self.block_size, row.position
        number = jnp.broadcast_to(jnp.arange(means.shape[1], dtype=jnp.int32), means.shape[:2])
        index = self.choose(q, means, row.real.astype(jnp.int32), now, jnp.ones_like(number), number)[:, 0]
        own = jnp.broadcast_to((now // size)[:, :, None], (*index.shape[:2], 1))
        slot, there = blocks_of(jnp.concatenate([own, index], axis=2), size)
        return slot, there & (slot <= now[:, :, None]) & row.real[:, :, None]


def mean(blocks: Float[Array, "B N C Hk D"]) -> Float[Array, "B N Hk D"]:
    """The mean of each block, summed in at least float32."""
    return blocks.astype(accumulator(blocks)).mean(axis=2).astype(blocks.dtype)
