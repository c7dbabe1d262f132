"""What the backward pass of a step keeps of the forward pass, from the shapes of a trace."""

import math
from functools import partial
from typing import Any

import jax
from jax.extend.core import Literal

from effarch import axes
from effarch.training.phase import Phase
from effarch.training.state import TrainState
from effarch.training.step import Scheduled
from effarch.typing import Array, PyTree


def kept_bytes(phase: Phase, state: TrainState, batch: PyTree, rules: axes.Rules, grad_accum: int = 1) -> int:
    """Bytes per device between forward and backward pass of one part of a batch, parameters themselves left out.

    What has a dimension of rows is split as rows and, with one of tokens, as tokens are; the compiler may keep less.

    Args:
      phase: of the training. state, batch: abstract. rules: of the mesh. grad_accum: parts of a batch.
    """
    loss = phase.trains.loss(phase.loss_fn)
    loss_fn = partial(loss.loss_fn, update=jax.numpy.int32(0)) if isinstance(loss, Scheduled) else loss
    rows, length = batch["tokens"].shape
    rows //= grad_accum
    part = jax.tree.map(lambda x: jax.ShapeDtypeStruct((rows, *x.shape[1:]), x.dtype), batch)

    def backward(params: PyTree, rest: PyTree, part: PyTree, rng: Array, *frozen: PyTree) -> Any:
        def objective(params: PyTree) -> Array:
            return loss_fn(params, rest, part, jax.random.wrap_key_data(rng), *frozen)[0]

        with axes.rules(rules):
            return jax.vjp(objective, params)[1]

    traced = jax.make_jaxpr(backward)(state.params, state.rest, part, state.rng, *phase.frozen).jaxpr
    given = {id(x) for x in (*traced.invars, *traced.constvars)}
    kept = {id(x): x.aval for x in traced.outvars if id(x) not in given and not isinstance(x, Literal)}
    total = 0
    for x in kept.values():
        ways = _ways(rules, "batch", rows, x.shape) * _ways(rules, "time", length, x.shape)
        total += -(-x.size * x.dtype.itemsize // ways)
    return total


def _ways(rules: axes.Rules, name: str, size: int, shape: tuple[int, ...]) -> int:
    ways = math.prod(rules.mesh.shape[axis] for axis in rules.mesh_axes(name))
    return ways if size in shape and size % ways == 0 else 1
