"""A sequence that is split over devices: each device's shard of the tokens, and what it must know of those before.

Left to the compiler, the sequence would be gathered. There are two ways not to:

- `split_over_devices`, for recurrences. A shard is an affine map of the state; the maps are gathered, and every device
  applies those before its own to the state it starts from.
- `before_shard`, for what looks back a bounded number of tokens. Summaries of neighbouring shards are joined in
  log2(devices) rounds of sends.

Neither exchanges anything whose size depends on T. Tokens that the devices do not divide are padded with zeros, which
ops take for padding (run 0), and the outputs are cut back.
"""

from collections.abc import Callable
from contextvars import ContextVar
from functools import partial
from typing import TypeVar

import jax
import jax.numpy as jnp
from jax.sharding import Mesh, PartitionSpec

from effarch import axes
from effarch.typing import Array, PyTree

Start = Callable[[Array], Array]
Summary = TypeVar("Summary")

_inside: ContextVar[bool] = ContextVar("inside_a_shard", default=False)


def varying_as(x: Array, like: Array) -> Array:
    """``x``, which may be the same on all devices, as one that differs from shard to shard like ``like``.

    Where it is made so, its gradient is summed over devices. So make it so while it is small: before it is broadcast
    over tokens. Outside of `on_shards`, ``x`` itself.
    """
    return x + jnp.zeros_like(like, shape=(), dtype=x.dtype) if _inside.get() else x


def on_shards(
    run: Callable[[PyTree, PyTree], tuple[PyTree, PyTree]], tokens: PyTree, state: PyTree, *, mesh: Mesh, axis: str
) -> tuple[PyTree, PyTree]:
    """``run(shard of the tokens, state)`` on every device of mesh axis ``axis``; other mesh axes stay automatic.

    Args:
      run: ``(tokens, state) -> (outputs [B, T / devices, ...], state)``; no rules are in force inside.
      tokens: arrays ``[B, T, ...]``, or of one dim: the same on every device.
      state: an array or a pytree of them, the same on every device.

    Returns:
      Outputs ``[B, T, ...]``, and the state that comes out of the last device.
    """
    time_axis, whole = PartitionSpec(None, axis), PartitionSpec()
    specs = jax.tree.map(lambda x: whole if x.ndim == 1 else time_axis, tokens)
    time = next(x.shape[1] for x in jax.tree.leaves(tokens) if x.ndim > 1)
    more = -time % mesh.shape[axis]

    def padded(x: Array) -> Array:
        return x if x.ndim == 1 or not more else jnp.pad(x, [(0, 0), (0, more)] + [(0, 0)] * (x.ndim - 2))

    def shard(local: PyTree, state: PyTree) -> tuple[PyTree, PyTree]:
        token = _inside.set(True)
        try:
            with axes.rules(None):
                o, end = run(local, jax.tree.map(partial(jax.lax.pcast, axis_name=axis, to="varying"), state))
        finally:
            _inside.reset(token)
        return o, jax.tree.map(lambda x: x[None], end)

    split = jax.shard_map(
        shard, mesh=mesh, in_specs=(specs, whole), out_specs=(time_axis, PartitionSpec(axis)), axis_names={axis}
    )
    o, ends = split(jax.tree.map(padded, tokens), state)
    return jax.tree.map(lambda x: x[:, :time] if more else x, o), jax.tree.map(lambda x: x[-1], ends)


def split_over_devices(
    tokens: PyTree,
    state: PyTree,
    *,
    run: Callable[[PyTree, PyTree], tuple[PyTree, PyTree]],
    span: Callable[[PyTree, Start], PyTree],
    apply: Callable[[PyTree, PyTree], PyTree],
    mesh: Mesh,
    axis: str,
) -> tuple[PyTree, PyTree]:
    """``run(tokens, state)`` with axis 1 of the tokens split over mesh axis ``axis``.

    Args:
      tokens: arrays ``[B, T, ...]``, or of one dim: the same on every device. Tokens of zeros are the identity.
      state: before the first token, an array or a pytree of them.
      run: ``(tokens, state) -> (outputs [B, T, ...], state)``.
      span: ``(tokens, start) -> the affine map of these tokens``; ``start`` makes a constant ready to be carried.
      apply: ``(map, state) -> state``.
    """

    def start(x: Array) -> Array:
        return jax.lax.pcast(x, axis, to="varying")

    def shard(local: PyTree, state: PyTree) -> tuple[PyTree, PyTree]:
        maps = jax.lax.all_gather(span(local, start), axis)
        mine = jax.lax.axis_index(axis)

        def fold(carry: PyTree, item: tuple[Array, PyTree]) -> tuple[PyTree, None]:
            index, affine = item
            return jax.tree.map(partial(jnp.where, index < mine), apply(affine, carry), carry), None

        return run(local, jax.lax.scan(fold, state, (jnp.arange(mesh.shape[axis]), maps))[0])

    return on_shards(shard, tokens, state, mesh=mesh, axis=axis)


def before_shard(
    own: Summary,
    first: Summary,
    *,
    join: Callable[[Summary, Summary], Summary],
    devices: int,
    axis: str,
    shards: int | None = None,
) -> Summary:
    """Inside `on_shards`: ``first`` joined with the summaries of all shards before this device's, in order.

    Args:
      own: the summary of this shard, arrays of a size that does not depend on T.
      first: what lies before the first shard.
      join: ``(earlier, later) -> summary``, associative; a summary of zeros before a later one changes nothing.
      devices: on ``axis``.
      shards: how many shards back may matter; all if None.
    """

    def send(x: Summary, distance: int) -> Summary:
        pairs = [(i, i + distance) for i in range(devices - distance)]
        return jax.tree.map(lambda leaf: jax.lax.ppermute(leaf, axis, pairs), x)

    mine = jax.lax.axis_index(axis)
    found = jax.tree.map(lambda x, y: jnp.where(mine == 0, x, y), first, send(own, 1))
    reach = 1
    while reach < min(devices, devices if shards is None else shards):
        found = join(send(found, reach), found)
        reach *= 2
    return found
