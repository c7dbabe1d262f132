"""Sparse attention over a sequence that is split over devices: each keeps its queries, and gathers keys and values.

Which keys a query sees is known to its own device only, and differs from query to query: a shard of many queries sees
nearly all blocks, so that all are sent to all, once for each layer. What grows with the queries stays split: scores,
outputs, the choice of blocks, time. A layer's keys and values, of few heads, are whole on every device while it runs:
O(T) bytes, exchanged and held; their gradients are summed to where they belong.
"""

from collections.abc import Callable

import jax
from jax.sharding import Mesh

from effarch.ops.attention.line import Line, lay_out
from effarch.ops.context import on_shards
from effarch.ops.segments import Segments, partition
from effarch.typing import Array, Float, PyTree


def over_gathered_keys(
    read: Callable[[Array, Line, PyTree], Array],
    q: Float[Array, "B T Hq D"],
    k: Float[Array, "B T Hk D"],
    v: Float[Array, "B T Hk V"],
    row: Segments,
    held: PyTree = (),
    *,
    mesh: Mesh,
    axis: str,
) -> Array:
    """``read(q, line, held)`` with the queries split over mesh axis ``axis``; other mesh axes stay automatic.

    Args:
      read: ``(queries [B, T / devices, Hq, D], the whole row's line as they see it, held) -> [B, T / devices, ...]``.
      row: runs and positions of the tokens.
      held: arrays that are the same for every token; ``read`` must not close over any.
    """

    def shard(tokens: PyTree, held: PyTree) -> tuple[Array, PyTree]:
        q, *others = tokens
        k, v, run, position = (jax.lax.all_gather(x, axis, axis=1, tiled=True) for x in others)
        line, _ = lay_out(k, v, Segments(run, run, position, *partition(run > 0)))
        return read(q, line.of(jax.lax.axis_index(axis) * q.shape[1], q.shape[1]), held), ()

    return on_shards(shard, (q, k, v, row.run, row.position), held, mesh=mesh, axis=axis)[0]
