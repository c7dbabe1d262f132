"""A tree of arrays as a flat one: names, checksums, and a short list of differences."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from effarch.parallel.processes import everywhere
from effarch.typing import Array, PyTree

_SHOWN = 5  # differences


def flatten(tree: PyTree) -> dict[str, Any]:
    """The leaves by name: ``params.layers.w``, ``opt_state.1.mu.layers.w``, in the order of ``jax.tree.leaves``.

    Raises:
      ValueError: two leaves have one name.
    """
    leaves = jax.tree_util.tree_flatten_with_path(tree)[0]
    named = {jax.tree_util.keystr(path, simple=True, separator=".").removesuffix(".value"): x for path, x in leaves}
    if len(named) != len(leaves):
        raise ValueError(f"state: expected {len(leaves)} different names, got {len(named)}")
    return named


def target(x: Any) -> jax.ShapeDtypeStruct:
    """What to restore for an array, abstract or not; whole, in every process, where it names no sharding."""
    where = getattr(x, "sharding", None) or everywhere()
    return jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=where)


def _is_key(x: Any) -> bool:
    return jnp.issubdtype(x.dtype, jax.dtypes.prng_key)


@jax.jit
def _bit_sums(arrays: dict[str, Array]) -> Array:
    def one(x: Array) -> Array:
        if _is_key(x):
            x = jax.random.key_data(x)
        if x.dtype == jnp.bool_:
            x = x.astype(jnp.uint8)
        unsigned = {1: jnp.uint8, 2: jnp.uint16}.get(x.dtype.itemsize, jnp.uint32)
        return jax.lax.bitcast_convert_type(x, unsigned).astype(jnp.uint32).sum(dtype=jnp.uint32)

    return jnp.stack([one(arrays[name]) for name in sorted(arrays)])


def checksums(arrays: dict[str, Array]) -> dict[str, int]:
    """Per array, the sum of its bits taken as integers, modulo 2^32: the same however the array is split."""
    sums = np.asarray(_bit_sums(arrays))
    return {name: int(value) for name, value in zip(sorted(arrays), sums, strict=True)}


def differences(stored: dict[str, Any], wanted: dict[str, Any], *, whole: bool) -> tuple[str, ...]:
    """Where a checkpoint is not what we expect: a few lines, at most one per array.

    Args:
      stored: name -> anything with shape and dtype.
      wanted: the same.
      whole: whether ``stored`` may hold nothing else.
    """

    def shown(x: Any) -> str:
        x = jax.eval_shape(jax.random.key_data, x) if _is_key(x) else x  # as it is stored
        return f"{np.dtype(x.dtype).name}{list(x.shape)}"

    lines = [f"{name}: expected {shown(wanted[name])}, not in the checkpoint" for name in wanted if name not in stored]
    if whole:
        extra = [name for name in stored if name not in wanted]
        lines += [f"{name}: {shown(stored[name])} in the checkpoint, not expected" for name in extra]
    pairs = {name: (shown(wanted[name]), shown(stored[name])) for name in wanted if name in stored}
    lines += [f"{name}: expected {a}, the checkpoint has {b}" for name, (a, b) in pairs.items() if a != b]
    if len(lines) > _SHOWN:
        return (*lines[:_SHOWN], f"... and {len(lines) - _SHOWN} more")
    return tuple(lines)
