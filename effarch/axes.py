"""Logical axis names, the rules in force, and the two things code may do with them.

Models and ops name *logical* axes ("batch", "time", "embed", "heads", "mlp", "vocab"); a table of rules says which
mesh axes they are split over. Nothing above this file names a mesh axis.

The rules are read while a function is traced: enter them inside the function that is jitted, or a cached trace made
under other rules may be used again.
"""

import contextlib
import contextvars
import dataclasses
import math
from collections.abc import Generator

import jax
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from effarch.config import UserError
from effarch.typing import Array

#: Logical axes of activations and parameters.
NAMES = ("batch", "time", "embed", "heads", "head_dim", "mlp", "vocab", "rank", "conv", "layers")


@dataclasses.dataclass(frozen=True)
class Rules:
    """A mesh, and the mesh axes (one, several or none) that each logical axis is split over.

    Attributes:
      mesh: devices with named axes, Auto.
      table: ``((logical, mesh axis | tuple of mesh axes | None), ...)``; a name that is absent is not split.
    """

    mesh: Mesh
    table: tuple[tuple[str, tuple[str, ...] | str | None], ...]

    def mesh_axes(self, name: str | None) -> tuple[str, ...]:
        """Mesh axes of size > 1 that the logical axis is split over; () for none.

        Raises:
          ValueError: the name is no logical axis.
        """
        if name is None:
            return ()
        if name not in NAMES:
            raise ValueError(f"axis name: expected one of {', '.join(NAMES)}, got {name!r}")
        found = dict(self.table).get(name)
        axes = (found,) if isinstance(found, str) else tuple(found or ())
        return tuple(axis for axis in axes if self.mesh.shape.get(axis, 1) > 1)

    def spec(self, *names: str | None, shape: tuple[int, ...] | None = None) -> PartitionSpec:
        """The PartitionSpec of an array whose dimensions carry these names.

        A mesh axis is used once, by the first name that asks for it. With ``shape``, a dimension that its mesh axes
        do not divide stays whole.
        """
        used: set[str] = set()
        parts: list[tuple[str, ...] | None] = []
        for dim, name in enumerate(names):
            axes = tuple(axis for axis in self.mesh_axes(name) if axis not in used)
            if not axes or (shape is not None and shape[dim] % self.ways(axes)):
                parts.append(None)
                continue
            used.update(axes)
            parts.append(axes)
        return PartitionSpec(*parts)

    def ways(self, axes: tuple[str, ...]) -> int:
        """Parts that these mesh axes split a dimension into."""
        return math.prod(self.mesh.shape[axis] for axis in axes)

    def check(self, what: str, names: tuple[str | None, ...], shape: tuple[int, ...]) -> None:
        """Refuses an array that would be split but does not divide.

        Raises:
          UserError: it names the array, the mesh axes and the sizes.
        """
        for dim, part in enumerate(self.spec(*names)):
            axes = (part,) if isinstance(part, str) else tuple(part or ())
            if shape[dim] % (ways := self.ways(axes)):
                mesh = " * ".join(f"mesh.{axis}" for axis in axes)
                raise UserError(
                    f"{mesh}: expected a divisor of {shape[dim]}, dimension {dim} ({names[dim]}) of {what} "
                    f"{list(shape)}, got {ways}"
                )


_in_force: contextvars.ContextVar[Rules | None] = contextvars.ContextVar("effarch_rules", default=None)


@contextlib.contextmanager
def rules(table: Rules | None) -> Generator[None]:
    """Puts rules in force for the code traced inside the block; ``None`` lifts them."""
    token = _in_force.set(table)
    try:
        yield
    finally:
        _in_force.reset(token)


def current() -> Rules | None:
    """The rules in force, if any."""
    return _in_force.get()


def constrain(x: Array, *names: str | None) -> Array:
    """``x`` laid out as the rules in force say for these names; ``x`` itself when there are none.

    Raises:
      ValueError: the number of names is not the rank of ``x``, or a name is no logical axis.
    """
    if len(names) != x.ndim:
        raise ValueError(f"constrain: expected {x.ndim} axis names for shape {list(x.shape)}, got {len(names)}")
    table = current()
    if table is None:
        return x
    return jax.lax.with_sharding_constraint(x, NamedSharding(table.mesh, table.spec(*names, shape=x.shape)))


def context_parallel(time: int) -> tuple[Mesh, str] | None:
    """The mesh and mesh axis that ``time`` tokens are split over, or None. Where the axis does not divide them, the ops
    add padding (``effarch.ops.context``), and between ops every device has all tokens.

    Raises:
      ValueError: the rules split "time" over several mesh axes.
    """
    table = current()
    if table is None or time == 1:  # decoding one token: nothing to split
        return None
    axes = table.mesh_axes("time")
    if not axes:
        return None
    if len(axes) > 1:
        raise ValueError(f'rules: expected one mesh axis for "time", got {axes}')
    return table.mesh, axes[0]
