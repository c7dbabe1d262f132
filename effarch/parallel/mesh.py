"""The device mesh: one name per way of splitting the work."""

import math
from collections.abc import Sequence

import jax
from jax.sharding import AxisType, Mesh
from pydantic import Field

from effarch.config import Config, UserError


class MeshConfig(Config):
    """Devices along each mesh axis; at most one axis is -1 and takes the devices that are left."""

    data: int = Field(
        -1, description="devices that see different rows and hold whole parameters (-1: all that are left)"
    )
    fsdp: int = Field(1, description="devices that see different rows and hold a part of every parameter")
    tensor: int = Field(1, description="devices that split heads, feed-forward width and vocabulary")
    context: int = Field(1, description="devices that split the sequence")


def mesh_sizes(config: MeshConfig, count: int) -> dict[str, int]:
    """Devices along each axis, of ``count`` devices.

    Raises:
      UserError: a size is neither -1 nor positive, two are -1, or the sizes do not multiply to the number of devices.
    """
    sizes = dict(config)
    for name, size in sizes.items():
        if size != -1 and size < 1:
            raise UserError(f"mesh.{name}: expected -1 or a positive number of devices, got {size}")
    fills = [name for name, size in sizes.items() if size == -1]
    if len(fills) > 1:
        raise UserError(f"mesh.{fills[1]}: expected at most one -1, got -1 for {' and '.join(fills)}")
    named = math.prod(size for size in sizes.values() if size != -1)
    if fills:
        sizes[fills[0]], rest = divmod(count, named)
        if rest:
            others = " * ".join(name for name in sizes if name != fills[0])
            raise UserError(f"mesh.{fills[0]}: expected {others} to divide {count} devices, got {named}")
    elif named != count:
        product = " * ".join(sizes)
        raise UserError(f"mesh: expected {product} = {count} devices, got {named}; -1 takes all that are left")
    return sizes


def make_mesh(config: MeshConfig, devices: Sequence[jax.Device] | None = None) -> Mesh:
    """A mesh with Auto axes ``data``, ``fsdp``, ``tensor``, ``context``.

    Args:
      config: the number of devices per axis.
      devices: the devices to use; all by default.

    Raises:
      UserError: as :func:`mesh_sizes`.
    """
    devices = list(jax.devices() if devices is None else devices)
    sizes = mesh_sizes(config, len(devices))
    return jax.make_mesh(tuple(sizes.values()), tuple(sizes), axis_types=(AxisType.Auto,) * len(sizes), devices=devices)
