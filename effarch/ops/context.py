"""A recurrence over a sequence that is split over devices.

A device's shard of the tokens is an affine map of the state. The maps are gathered (their size does not depend on T),
every device applies those before its own to the state it starts from, and then runs its shard as if it were alone. Left
to the compiler, the sequence would be gathered instead.
"""

from collections.abc import Callable
from functools import partial

import jax
import jax.numpy as jnp
from jax.sharding import Mesh, PartitionSpec

from effarch.typing import Array, PyTree

Start = Callable[[Array], Array]


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
    """``run(tokens, state)`` with axis 1 of the tokens split over mesh axis ``axis``; other mesh axes stay automatic.

    Args:
      tokens: arrays ``[B, T, ...]``, or of one dim: the same on every device.
      state: before the first token, an array or a pytree of them.
      run: ``(tokens, state) -> (outputs [B, T, ...], state)``.
      span: ``(tokens, start) -> the affine map of these tokens``; ``start`` makes a constant ready to be carried.
      apply: ``(map, state) -> state``.
    """
    time, whole = PartitionSpec(None, axis), PartitionSpec()
    specs = jax.tree.map(lambda x: whole if x.ndim == 1 else time, tokens)

    def shard(local: PyTree, state: PyTree) -> tuple[PyTree, PyTree]:
        def start(x: Array) -> Array:
            return jax.lax.pcast(x, axis, to="varying")

        maps = jax.lax.all_gather(span(local, start), axis)
        mine = jax.lax.axis_index(axis)

        def fold(carry: PyTree, item: tuple[Array, PyTree]) -> tuple[PyTree, None]:
            index, affine = item
            return jax.tree.map(partial(jnp.where, index < mine), apply(affine, carry), carry), None

        count = mesh.shape[axis]
        state, _ = jax.lax.scan(fold, jax.tree.map(start, state), (jnp.arange(count), maps))
        o, end = run(local, state)
        return o, jax.tree.map(lambda x: x[None], end)

    split = jax.shard_map(
        shard, mesh=mesh, in_specs=(specs, whole), out_specs=(time, PartitionSpec(axis)), axis_names={axis}
    )
    o, ends = split(tokens, state)
    return o, jax.tree.map(lambda x: x[-1], ends)
