"""The last real tokens of a document: what convolutions and windows must know of the shards before theirs."""

from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from effarch.ops.context import before_shard, on_shards
from effarch.ops.segments import Segments, partition, renumbered
from effarch.typing import Array, Float, Int, PyTree


class Tail(NamedTuple):
    """The last real tokens of one run. All zeros: no token.

    Attributes:
      last: arrays ``[B, R, ...]`` of its last R real tokens, oldest first; zeros where there are none.
      first: arrays ``[B, F, ...]`` of its first F positions; zeros where they are not among the tokens seen.
      count: ``[B]`` int32 how many of the last R there are. run: ``[B]`` int32 which run; 0: no token.
    """

    last: PyTree
    first: PyTree
    count: Int[Array, " B"]
    run: Int[Array, " B"]


def tail_of(last: PyTree, first: PyTree, run: Array, position: Array, reach: int, count: int) -> Tail:
    """The tail of these tokens: the last ``reach`` of ``last [B, T, ...]``, the first ``count`` of ``first``."""
    newest = run.max(axis=1)
    at = (run > 0).sum(axis=1, dtype=jnp.int32)[:, None] - jnp.arange(reach, 0, -1, dtype=jnp.int32)[None]
    order, _ = partition(run > 0)
    tokens = jnp.take_along_axis(order, jnp.maximum(at, 0), axis=1)
    there = (at >= 0) & (jnp.take_along_axis(run, tokens, axis=1) == newest[:, None])
    last = jax.tree.map(partial(_pick, tokens, there), last)
    slot = jnp.arange(count, dtype=jnp.int32)[None, :, None]
    hit = (position[:, None] == slot) & (run == newest[:, None])[:, None] & (run > 0)[:, None]
    first = jax.tree.map(partial(_pick, hit.argmax(axis=2), hit.any(axis=2)), first)
    return Tail(last, first, there.sum(axis=1, dtype=jnp.int32), newest)


def _pick(tokens: Array, there: Array, x: Array) -> Array:
    found = jax.vmap(lambda row, i: row[i])(x, tokens)
    return _where(there, found, jnp.zeros((), x.dtype))


def _where(mask: Array, x: Array, y: Array) -> Array:
    return jnp.where(mask.reshape(mask.shape + (1,) * (x.ndim - mask.ndim)), x, y)


def join(earlier: Tail, later: Tail) -> Tail:
    """The tail of two stretches of tokens, one after the other."""
    same, nothing = earlier.run == later.run, later.run == 0

    def joined(x: Array, y: Array) -> Array:  # y's tokens push those of x out
        slot = later.count[:, None] + jnp.arange(x.shape[1], dtype=jnp.int32)[None]
        pushed = _pick(jnp.minimum(slot, x.shape[1] - 1), slot < x.shape[1], x)
        return _where(nothing, x, _where(same, pushed + y, y))

    def beside(x: Array, y: Array) -> Array:  # every position is in one of the two
        return _where(nothing, x, _where(same, x + y, y))

    reach = jax.tree.leaves(earlier.last)[0].shape[1]
    count = later.count + jnp.where(same | nothing, earlier.count, 0)
    return Tail(
        jax.tree.map(joined, earlier.last, later.last),
        jax.tree.map(beside, earlier.first, later.first),
        jnp.minimum(count, reach),
        jnp.where(nothing, earlier.run, later.run),
    )


def with_tails(
    run: Callable[[PyTree, Segments | None, Tail], tuple[PyTree, PyTree]],
    tokens: PyTree,
    before: Tail,
    segments: Segments | None,
    *,
    last: Callable[[PyTree], PyTree],
    first: Callable[[PyTree], PyTree] | None = None,
    mesh: Mesh,
    axis: str,
) -> tuple[PyTree, PyTree]:
    """``run`` on every device's shard, beside the tail of all tokens before it.

    Args:
      run: ``(tokens, segments, tail) -> (outputs [B, T, ...], state)``; the tail is of run 1 of the segments.
      tokens: a pytree of ``[B, T, ...]``.
      before: the tail before the first token; its ``run`` is 1.
      segments: of the tokens, None for one document without padding.
      last, first: what of the tokens the tail holds; ``first`` needs segments.

    Returns:
      Outputs, and the state that comes out of the last device.
    """
    devices = mesh.shape[axis]
    batch, time = jax.tree.leaves(tokens)[0].shape[:2]
    reach = jax.tree.leaves(before.last)[0].shape[1]
    count = jax.tree.leaves(before.first)[0].shape[1] if first is not None else 0
    shards = None
    if segments is None:
        if time % devices == 0 and first is None:
            shards = -(-reach // (time // devices))
        ones = jnp.ones((batch, time), jnp.int32)
        where = (ones, ones)
    else:
        where = (segments.run, segments.position)

    def shard(local: PyTree, before: Tail) -> tuple[PyTree, PyTree]:
        tokens, (runs, position) = local
        own = tail_of(last(tokens), () if first is None else first(tokens), runs, position, reach, count)
        found = before_shard(own, before, join=join, devices=devices, axis=axis, shards=shards)
        inner = None if shards is not None else renumbered(runs, position, found.run)
        return run(tokens, inner, found._replace(run=jnp.ones_like(found.run)))

    return on_shards(shard, (tokens, where), before, mesh=mesh, axis=axis)


def tail_from(state: Float[Array, "B R ..."]) -> Tail:
    """The tail that a state of the last R real tokens is; zeros count as tokens."""
    full = jnp.full(state.shape[:1], state.shape[1], jnp.int32)
    return Tail(state, (), full, jnp.ones_like(full))
