"""The recurrence over a sequence that is split over devices.

A device's shard is an affine map ``S -> M S + U``. The maps are gathered (their size does not depend on T), every
device composes those before its own into the state it starts from, and then runs its shard as if it were alone. Left
to the compiler, the sequence would be gathered instead.
"""

import dataclasses
from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax.sharding import Mesh, PartitionSpec

from effarch.ops.recurrence.inputs import Inputs
from effarch.typing import Array

Core = Callable[[Inputs, Array], tuple[Array, Array]]


def span(core: Core, inputs: Inputs, start: Callable[[Array], Array]) -> tuple[Array, Array]:
    """The affine map of these tokens.

    ``M [B, H, K, K]`` (``[B, H, K, 1]`` where it is diagonal) and ``U [B, H, K, V]``.

    Args:
      core: runs the tokens from a state. inputs: the tokens. start: makes a constant ready to be carried by ``core``.
    """
    batch, _, heads, width_v = inputs.v.shape
    width, dtype = inputs.k.shape[-1], inputs.state_dtype
    added = core(inputs, start(jnp.zeros((batch, heads, width, width_v), dtype)))[1]
    # M is what becomes of the identity (of ones, where M is diagonal) when nothing is written.
    identity = jnp.ones((width, 1), dtype) if inputs.kind == "decay" else jnp.eye(width, dtype=dtype)
    blank = start(jnp.zeros((*inputs.v.shape[:3], identity.shape[-1]), dtype))
    whole = jnp.broadcast_to(identity[None, None], (batch, heads, *identity.shape))
    return core(dataclasses.replace(inputs, v=blank), start(whole))[1], added


def compose(earlier: tuple[Array, Array], later: tuple[Array, Array]) -> tuple[Array, Array]:
    """``later after earlier``: ``(M2 M1, M2 U1 + U2)``; associative, not commutative."""
    (m1, u1), (m2, u2) = earlier, later
    return apply((m2, jnp.zeros_like(m1)), m1), apply((m2, u2), u1)


def apply(affine: tuple[Array, Array], state: Array) -> Array:
    """``M S + U``."""
    m, u = affine
    if m.shape[-1] == 1:
        return m * state + u
    return jnp.einsum("...ij,...jv->...iv", m, state, precision=jax.lax.Precision.HIGHEST) + u


def context_parallel(core: Core, inputs: Inputs, state: Array, mesh: Mesh, axis: str) -> tuple[Array, Array]:
    """Runs ``core`` with axis 1 of every token array split over mesh axis ``axis``; other mesh axes stay automatic."""
    time, whole = PartitionSpec(None, axis), PartitionSpec()
    specs = jax.tree.map(lambda x: whole if x.ndim == 1 else time, inputs)

    def shard(local: Inputs, state: Array) -> tuple[Array, Array]:
        def start(x: Array) -> Array:
            return jax.lax.pcast(x, axis, to="varying")

        maps = jax.lax.all_gather(span(core, local, start), axis)
        mine = jax.lax.axis_index(axis)

        def fold(carry: Array, item: tuple[Array, tuple[Array, Array]]) -> tuple[Array, None]:
            index, affine = item
            return jnp.where(index < mine, apply(affine, carry), carry), None

        count = mesh.shape[axis]
        state, _ = jax.lax.scan(fold, start(state), (jnp.arange(count), maps))
        o, end = core(local, state)
        return o, end[None]

    run = jax.shard_map(
        shard,
        mesh=mesh,
        in_specs=(specs, whole),
        out_specs=(time, PartitionSpec(axis)),
        axis_names={axis},
    )
    o, ends = run(inputs, state)
    return o, ends[-1]
