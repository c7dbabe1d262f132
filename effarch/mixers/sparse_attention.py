"""What the mixers of sparse attention share: one projection, one line of documents, three ways to read it."""

from effarch.mixers.base import Context
from effarch.mixers.softmax_attention import Attention
from effarch.ops.attention import KVCache, Line, append, lay_out, read_slots
from effarch.ops.attention.cache import resume
from effarch.typing import Array, Bool, Int


class SparseAttention(Attention):
    """Causal attention to a pattern of positions, which a subclass says three times over.

    ``seen``: as a mask, for the parallel form. ``sparse``: in time that of the pairs kept. ``slots``: as the list that
    one query reads from the cache.
    """

    @property
    def scale(self) -> float:
        """Of the logits."""
        return self.config.head_dim**-0.5

    def seen(self, line: Line) -> Bool[Array, "B ... T L"]:
        """Which keys of the line each query sees, as `reference.mix` takes it."""
        raise NotImplementedError(f"{type(self).__name__} has no seen")

    def sparse(self, q: Array, line: Line) -> Array:
        """Attention of the queries to the line."""
        raise NotImplementedError(f"{type(self).__name__} has no sparse")

    def slots(self, position: Int[Array, " B"], length: int) -> tuple[Int[Array, "B Hs M"], Bool[Array, "B Hs M"]]:
        """Positions seen from ``position`` in a cache of ``length`` slots, each once, and which of them there are."""
        raise NotImplementedError(f"{type(self).__name__} has no slots")

    def init_state(self, batch_size: int, max_length: int) -> KVCache:
        c = self.config
        return KVCache.init(batch_size, max_length, c.num_kv_heads, c.head_dim, c.head_dim, self.dtype)

    def __call__(self, x: Array, state: KVCache | None, ctx: Context) -> tuple[Array, KVCache | None, Context]:
        q, k, v = self.project(x)
        q, k = self.rotate(q, ctx.positions), self.rotate(k, ctx.positions)
        if state is not None and x.shape[1] == 1:
            segments = resume(state, k, v, ctx.segments)
            state = append(state, k, v, segments)
            slot, there = self.slots(segments.position[:, 0], state.k.shape[1])
            there &= segments.real[:, :, None] & (slot >= 0)
            return self.qkv.o(read_slots(q, state, slot, there, scale=self.scale)), state, ctx
        line, state = lay_out(k, v, ctx.segments, state)
        if ctx.form == "parallel":
            return self.qkv.o(line.dense(q, self.seen(line), scale=self.scale)), state, ctx
        return self.qkv.o(self.sparse(q, line)), state, ctx
