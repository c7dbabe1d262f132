"""Longformer (2004.05150), causal, for language models: windows that are dilated by head, and global tokens.

    o_i = softmax attention over the keys  j = i - m d_h, m = 0, ..., w - 1, of head h's dilation d_h,
          and over the g first tokens of the document, j < g, j <= i

The paper's language models have no global tokens (g = 0), windows that widen from layer to layer, and two dilated heads
in the upper layers: a pattern of layers with other values of ``window`` and ``dilations`` each. Departs from it in its
rotary positions (the paper's are relative, sinusoidal) and grouped heads. A global token sees all that comes before it;
that is global tokens only, so they keep no projections of their own: those are in `longformer_encoder`. Time is
O(T (w + g)); the state, a ring of w max(d) keys beside those of the g tokens, does not grow.
"""

import dataclasses
from operator import itemgetter
from typing import ClassVar, Self

import jax.numpy as jnp
import pydantic
from flax import nnx
from jax.sharding import Mesh

from effarch import axes
from effarch.mixers.base import Context, LayerInfo
from effarch.mixers.softmax_attention import Attention, SoftmaxAttention
from effarch.ops.attention import Dilated, Line, RingCache, Visibility, append, lay_out, merge, row_segments
from effarch.ops.attention.blockwise import attention_and_logsumexp
from effarch.ops.attention.cache import resume
from effarch.ops.attention.line import block_for, gather
from effarch.ops.attention.reference import mix, shield, zero_padding
from effarch.ops.attention.window import context_of, tail_before
from effarch.ops.segments import Segments
from effarch.ops.tail import Tail, with_tails
from effarch.registry import register
from effarch.typing import Array, Float, Int, PyTree


@register("longformer", kind="mixer")
class Longformer(SoftmaxAttention):
    """Causal softmax attention to a window, dilated by head, and to the first tokens."""

    recurrent: ClassVar[bool] = True  # its cache does not grow
    caps_logits: ClassVar[bool] = False
    paper: ClassVar[str] = "2004.05150 Longformer: The Long-Document Transformer"

    window: int = pydantic.Field(512, gt=0, description="w: tokens that a head sees, its own included")
    dilations: tuple[pydantic.PositiveInt, ...] = pydantic.Field(
        (1,), min_length=1, description="d: tokens from one seen to the next, for as many equal groups of key heads"
    )
    global_tokens: int = pydantic.Field(0, ge=0, description="g: first tokens of the document that all see")

    @pydantic.model_validator(mode="after")
    def _groups(self) -> Self:
        if self.num_kv_heads % len(self.dilations):
            raise ValueError(
                f"dilations: expected as many as divide num_kv_heads {self.num_kv_heads}, got {len(self.dilations)}"
            )
        return self

    @property
    def windows(self) -> Dilated:
        """The windows of the heads."""
        return Dilated(self.window, self.dilations)

    def make(self, dim: int, *, layer: LayerInfo, rngs: nnx.Rngs) -> Attention:
        return LongformerMixer(self, dim, layer=layer, rngs=rngs)

    def flops(self, dim: int, time: int) -> int:
        first = min(self.global_tokens, time)
        pairs = self.windows.pairs(time, first) + first * time - first * (first - 1) // 2
        return time * self.projection_flops(dim) + round(4 * self.num_heads * self.head_dim * pairs)

    @classmethod
    def tiny(cls) -> tuple[Self, int]:
        return cls(num_heads=4, num_kv_heads=2, head_dim=8, window=4, dilations=(1, 3), global_tokens=2), 32


def split(line: Line, first: int) -> tuple[Line, Int[Array, "B T"]]:
    """A line without the ``first`` tokens of its documents, and the runs of the row where only they are not padding."""
    rest = dataclasses.replace(line, run=jnp.where(line.position < first, 0, line.run))
    return rest, jnp.where(line.position_q < first, line.run_q, 0)


def read(
    q: Array, rest: Line, windows: Dilated, first: tuple[Array, Array, Visibility], *, tokens: int, form: str
) -> Float[Array, "B T Hq V"]:
    """One softmax over windows of a line and over the keys (k, v, who sees them) of its first ``tokens``."""
    k, v, visibility = first
    if form == "parallel":
        near = (q, *shield(rest.k, rest.v, rest.run), windows.seen(rest))
        return mixed([near, (q, *shield(k, v, visibility.run_k), visibility.pairs())], rest.run_q)
    scale = q.shape[3] ** -0.5
    parts = [windows.attend(q, rest, scale=scale)]
    if tokens:
        parts.append(attention_and_logsumexp(q, k, v, visibility, scale=scale, block_size=block_for(tokens)))
    return merge(parts)


def mixed(groups: list, run: Int[Array, "B T"]) -> Float[Array, "B T Hq V"]:
    """One softmax over groups of keys in memory; padding has none of it."""
    groups = [(zero_padding(q, run), *others) for q, *others in groups]
    return zero_padding(mix(groups, scale=groups[0][0].shape[3] ** -0.5), run)


class LongformerMixer(Attention):
    """The module; see the file. Its state is a ring of keys, and those of the global tokens."""

    config: Longformer

    def init_state(self, batch_size: int, max_length: int) -> RingCache:
        c = self.config
        sizes = (c.num_kv_heads, c.head_dim, c.head_dim)
        return RingCache.init(batch_size, c.windows.longest, c.global_tokens, *sizes, self.dtype)

    def __call__(self, x: Array, state: RingCache | None, ctx: Context) -> tuple[Array, RingCache | None, Context]:
        q, k, v = self.project(x)
        q, k = self.rotate(q, ctx), self.rotate(k, ctx)
        if state is not None and x.shape[1] == 1:
            o, state = self._token(q, k, v, state, resume(state, k, v, ctx.segments))
        elif state is None and ctx.form == "chunkwise" and (split := axes.context_parallel(x.shape[1])) is not None:
            o = self._split(q, k, v, row_segments(ctx.segments, *x.shape[:2]), *split)
        else:
            o, state = self._row(q, k, v, state, ctx.segments, ctx.form)
        return self.output(o, x), state, ctx

    def _split(self, q: Array, k: Array, v: Array, row: Segments, mesh: Mesh, axis: str) -> Float[Array, "B T Hq V"]:
        """Every shard of a row that is split over devices goes on with the cache that those before it would leave."""
        reach, sinks = self.config.windows.longest, self.config.global_tokens

        def shard(tokens: PyTree, inner: Segments | None, tail: Tail) -> tuple[Array, PyTree]:
            q, k, v, _ = tokens
            left = context_of(tail, k, v)
            # Keys by age, oldest first, to the places of their positions in the ring.
            slot = (jnp.arange(reach, dtype=jnp.int32)[None] - left.length[:, None]) % reach
            ring = RingCache(gather(left.k, slot), gather(left.v, slot), left.sink_k, left.sink_v, left.length)
            return self._row(q, k, v, ring, inner, "chunkwise")[0], ()

        before = tail_before(None, k, v, reach, sinks)
        held = {"last": itemgetter(1, 2, 3), "first": itemgetter(1, 2) if sinks else None}
        return with_tails(shard, (q, k, v, row.position + 1), before, row, **held, mesh=mesh, axis=axis)[0]

    def _row(self, q: Array, k: Array, v: Array, state: RingCache | None, segments: Segments | None, form: str):
        c = self.config
        line, after = lay_out(k, v, segments, state)
        rest, run = split(line, c.global_tokens)
        position = line.position_q
        if state is not None:
            slot, there = _carried(state)
            k, v = (jnp.concatenate([a.astype(b.dtype), b], 1) for a, b in ((state.sink_k, k), (state.sink_v, v)))
            run, position = jnp.concatenate([there, run], axis=1), jnp.concatenate([slot, position], axis=1)
        first = k, v, Visibility(line.run_q, line.position_q, run, position)
        return read(q, rest, c.windows, first, tokens=c.global_tokens, form=form), after

    def _token(self, q: Array, k: Array, v: Array, state: RingCache, row: Segments) -> tuple[Array, RingCache]:
        c, after, run, now = self.config, append(state, k, v, row), row.real.astype(jnp.int32), row.position
        held, (slot, there) = after.position, _carried(after)
        rest = (held >= c.global_tokens).astype(jnp.int32)
        near = Visibility(run, now, rest, held).pairs()[:, None, None]
        near &= c.windows.sees(now[:, :, None] - held[:, None], c.num_kv_heads)
        first = Visibility(run, now, there, slot).pairs()
        groups = [(q, *shield(after.k, after.v, rest), near)]
        if c.global_tokens:
            groups.append((q, *shield(after.sink_k, after.sink_v, there), first))
        return mixed(groups, run), after


def _carried(state: RingCache) -> tuple[Int[Array, "B sinks"], Int[Array, "B sinks"]]:
    """The positions of the global tokens, and 1 for those that there are."""
    slot = jnp.broadcast_to(jnp.arange(state.sink_k.shape[1], dtype=jnp.int32), state.sink_k.shape[:2])
    return slot, (slot < state.length[:, None]).astype(jnp.int32)
