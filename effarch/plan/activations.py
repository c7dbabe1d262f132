"""What the backward pass of a step keeps of the forward pass, from the shapes of a trace."""

import math
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax.extend.core import Literal

from effarch import axes
from effarch.training.phase import Phase
from effarch.training.state import TrainState
from effarch.training.step import Scheduled
from effarch.typing import Array, PyTree

PRIME = 1009  # rows stand in for a multiple of it, so that their dimensions are known by it, flattened ones too


def kept_bytes(phase: Phase, state: TrainState, batch: PyTree, rules: axes.Rules, grad_accum: int = 1) -> int:
    """Bytes per device between forward and backward pass of one part of a batch, parameters themselves left out.

    What has a dimension of rows is split as rows and, with one of tokens, as tokens are; the rest, such as a gathered
    head, is whole on every device. The compiler may keep less.

    Args:
      phase: of the training. state, batch: abstract. rules: of the mesh. grad_accum: parts of a batch.
    """
    loss = phase.trains.loss(phase.loss_fn)
    loss_fn = partial(loss.loss_fn, update=jnp.int32(0)) if isinstance(loss, Scheduled) else loss
    rows, length = batch["tokens"].shape
    ways = _ways(rules, "batch")
    many = ways * PRIME
    part = jax.tree.map(lambda x: jax.ShapeDtypeStruct((many, *x.shape[1:]), x.dtype), batch)

    def backward(params: PyTree, rest: PyTree, part: PyTree, rng: Array, *frozen: PyTree) -> Any:
        def objective(params: PyTree) -> Array:
            return loss_fn(params, rest, part, jax.random.wrap_key_data(rng), *frozen)[0]

        with axes.rules(rules):
            return jax.vjp(objective, params)[1]

    traced = jax.make_jaxpr(backward)(state.params, state.rest, part, state.rng, *phase.frozen).jaxpr
    given = {id(x) for x in (*traced.invars, *traced.constvars)}
    kept = {id(x): x.aval for x in traced.outvars if id(x) not in given and not isinstance(x, Literal)}
    each = -(-rows // grad_accum // ways)  # rows of a device
    total = 0
    for x in kept.values():
        size = x.size * x.dtype.itemsize
        size = size // many * each if any(n and n % PRIME == 0 for n in x.shape) else size
        total += size // (_ways(rules, "time") if length in x.shape else 1)
    return total


def _ways(rules: axes.Rules, name: str) -> int:
    return math.prod(rules.mesh.shape[axis] for axis in rules.mesh_axes(name))
