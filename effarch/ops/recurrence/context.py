"""The affine maps that carry the recurrence over a sequence that is split over devices: ``S -> M S + U``."""

import dataclasses
from collections.abc import Callable
from functools import partial

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from effarch.ops.context import split_over_devices
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
    batch, time = inputs.v.shape[:2]
    if inputs.run is None and time % mesh.shape[axis]:  # the padding must not decay the state
        ones = jnp.ones((batch, time), jnp.int32)
        inputs = dataclasses.replace(inputs, run=ones, carried=ones)
    return split_over_devices(inputs, state, run=core, span=partial(span, core), apply=apply, mesh=mesh, axis=axis)
