"""Shardings of states and batches, from the logical axes that every parameter carries."""

from collections.abc import Callable
from typing import Any, TypeVar

import jax
import numpy as np
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


def _variable_sharding(name: str, variable: nnx.Variable, rules: axes.Rules) -> NamedSharding:
    names = variable.get_metadata("axes", None)
    value = variable.get_value()
    if names is None:
        return replicated(rules)
    if value.ndim - len(names) not in (0, 1):
        raise ValueError(f"axes: expected {value.ndim} names (or one less, scanned) for {value.shape}, got {names}")
    names = (None,) * (value.ndim - len(names)) + tuple(names)  # scanned layers are stacked in front, without a name
    rules.check(name, names, value.shape)
    return NamedSharding(rules.mesh, rules.spec(*names))


def variable_shardings(state: PyTree, rules: axes.Rules) -> PyTree:
    """The sharding of every variable of an NNX state, in the state's own structure.

    Args:
      state: a state of arrays or ``ShapeDtypeStruct``; a variable with metadata ``axes=(logical names)`` follows the
        rules, one without is replicated.
      rules: the rules table and its mesh.

    Raises:
      ValueError: a variable has neither as many axes as dimensions nor one less.
      UserError: mesh axes do not divide a dimension that they split.
    """

    def one(path: tuple[Any, ...], variable: nnx.Variable) -> nnx.Variable:
        name = jax.tree_util.keystr(path, simple=True, separator=".")
        return variable.replace(_variable_sharding(name, variable, rules))

    return jax.tree_util.tree_map_with_path(one, state, is_leaf=is_variable)


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


def check_rows(batch_size: int, ways: int) -> None:
    """Raises ``UserError`` for rows that do not divide over so many groups of devices."""
    if batch_size % ways:
        raise UserError(f"batch_size: expected a multiple of {ways} (mesh.data * mesh.fsdp), got {batch_size} rows")


def held_rows(rules: axes.Rules, batch_size: int) -> np.ndarray:
    """Which rows of a batch the devices of this process hold: ascending, int64.

    Raises:
      UserError: the rows do not divide over the devices.
    """
    check_rows(batch_size, rules.ways(rules.mesh_axes("batch")))
    parts = batch_sharding(rules).addressable_devices_indices_map((batch_size,)).values()
    return np.unique(np.concatenate([np.arange(batch_size)[part] for part in parts]))


def put_batch(batch: PyTree, rules: axes.Rules, batch_size: int | None = None) -> PyTree:
    """A batch laid out over the mesh.

    Args:
      batch: arrays of the rows that this process holds (:func:`held_rows`), in their order.
      rules: the rules table and its mesh.
      batch_size: rows over all processes; those of the arrays by default.

    Raises:
      UserError: the rows do not divide over the devices.
    """
    sharding = batch_sharding(rules)
    rows = len(jax.tree.leaves(batch)[0]) if batch_size is None else batch_size
    held = held_rows(rules, rows)

    def put(x: np.ndarray) -> jax.Array:
        def part(index: tuple[slice, ...] | None) -> np.ndarray:
            assert index is not None  # every device that is asked for holds rows
            return x[np.searchsorted(held, np.arange(rows)[index[0]])]

        return jax.make_array_from_callback((rows, *x.shape[1:]), sharding, part)

    return jax.tree.map(put, batch)


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
