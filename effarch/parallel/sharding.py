"""Shardings of states and batches, from the logical axes that every parameter carries."""

import math
from collections.abc import Callable
from typing import Any, TypeVar

import jax
import optax
from flax import nnx
from jax.sharding import NamedSharding, PartitionSpec

from effarch import axes
from effarch.config import UserError
from effarch.typing import PyTree

T = TypeVar("T")


def is_variable(x: Any) -> bool:
    """Whether a node of a tree is an NNX variable: an array with metadata."""
    return isinstance(x, nnx.Variable)


def replicated(rules: axes.Rules) -> NamedSharding:
    """Every device holds the whole array."""
    return NamedSharding(rules.mesh, PartitionSpec())


def _variable_sharding(variable: nnx.Variable, rules: axes.Rules) -> NamedSharding:
    names = variable.get_metadata("axes", None)
    value = variable.get_value()
    if names is None:
        return replicated(rules)
    if value.ndim - len(names) not in (0, 1):
        raise ValueError(f"axes: expected {value.ndim} names (or one less, scanned) for {value.shape}, got {names}")
    names = (None,) * (value.ndim - len(names)) + tuple(names)  # scanned layers are stacked in front, without a name
    return NamedSharding(rules.mesh, rules.spec(*names, shape=value.shape))


def variable_shardings(state: PyTree, rules: axes.Rules) -> PyTree:
    """The sharding of every variable of an NNX state, in the state's own structure.

    Args:
      state: a state of arrays or ``ShapeDtypeStruct``; a variable with metadata ``axes=(logical names)`` follows the
        rules, one without is replicated.
      rules: the rules table and its mesh.

    Raises:
      ValueError: a variable has neither as many axes as dimensions nor one less.
    """
    return jax.tree.map(lambda v: v.replace(_variable_sharding(v, rules)), state, is_leaf=is_variable)


def with_shardings(tree: PyTree, shardings: PyTree) -> PyTree:
    """Shapes, dtypes and shardings of arrays, abstract or not: what a step can be lowered for."""
    return jax.tree.map(lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s), tree, shardings)


def optimizer_shardings(
    tx: optax.GradientTransformation, opt_state: PyTree, params: PyTree, rules: axes.Rules
) -> PyTree:
    """The sharding of an optimizer state: that of the parameter for every moment, replicated for counters.

    Args:
      tx: the transformation whose ``init`` made ``opt_state``.
      opt_state: an optimizer state, abstract or not.
      params: the parameters' shardings (:func:`variable_shardings`).
      rules: the rules table and its mesh.
    """
    return optax.tree.map_params(
        tx, lambda _, sharding: sharding, opt_state, params, transform_non_params=lambda _: replicated(rules)
    )


def batch_sharding(rules: axes.Rules) -> NamedSharding:
    """Dimension 0 of every array of a batch is split over "batch"."""
    return NamedSharding(rules.mesh, rules.spec("batch"))


def put_batch(batch: PyTree, rules: axes.Rules) -> PyTree:
    """This process's rows of a batch, laid out over the mesh.

    Raises:
      UserError: the rows do not divide over the devices.
    """
    sharding = batch_sharding(rules)
    ways = math.prod(rules.mesh.shape[axis] for axis in rules.mesh_axes("batch"))
    for x in jax.tree.leaves(batch):
        rows = x.shape[0] * jax.process_count()
        if rows % ways:
            raise UserError(f"batch_size: expected a multiple of {ways} (mesh.data * mesh.fsdp), got {rows} rows")
    return jax.tree.map(lambda x: jax.make_array_from_process_local_data(sharding, x), batch)


def init_sharded(make: Callable[[], T], shardings: T) -> T:
    """Runs ``make`` so that every array comes into being where it belongs; no device ever holds the whole.

    Args:
      make: a traceable function without arguments.
      shardings: the tree of shardings of its result.
    """
    return jax.jit(make, out_shardings=shardings)()


def place(tree: T, shardings: T) -> T:
    """A copy of existing arrays, laid out as ``shardings`` say.

    It is always a copy: a step that donates it must not delete the arrays it came from (a teacher's, say).
    """
    return jax.device_put(tree, shardings, may_alias=False)
