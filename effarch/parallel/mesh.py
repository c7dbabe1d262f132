"""The device mesh: one name per way of splitting the work."""

import math
from collections.abc import Sequence

import jax
from jax.experimental import mesh_utils
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
    slices: int = Field(
        1, gt=0, description="TPU slices, or hosts, that a slower network connects; data is split over them first"
    )


def mesh_sizes(config: MeshConfig, count: int) -> dict[str, int]:
    """Devices along each axis, of ``count`` devices.

    Raises:
      UserError: a size is neither -1 nor positive, two are -1, or the sizes do not multiply to the number of devices.
    """
    sizes = {name: size for name, size in config if name != "slices"}
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
    if config.slices > 1:
        return _hybrid(config.slices, sizes, devices)
    return jax.make_mesh(tuple(sizes.values()), tuple(sizes), axis_types=(AxisType.Auto,) * len(sizes), devices=devices)


def _hybrid(slices: int, sizes: dict[str, int], devices: list[jax.Device]) -> Mesh:
    """Every slice has the same place in the mesh, and only ``data`` crosses from one to another."""
    if sizes["data"] % slices:
        raise UserError(f"mesh.slices: expected a divisor of mesh.data = {sizes['data']}, got {slices}")
    inside = (sizes["data"] // slices, *list(sizes.values())[1:])
    by_process = getattr(devices[0], "slice_index", None) is None
    try:
        grid = mesh_utils.create_hybrid_device_mesh(
            inside, (slices, *(1,) * len(inside[1:])), devices, process_is_granule=by_process
        )
    except ValueError as error:
        what = "processes" if by_process else "slices"
        raise UserError(f"mesh.slices: expected the number of {what} of the devices, got {slices} ({error})") from error
    return Mesh(grid, tuple(sizes), axis_types=(AxisType.Auto,) * len(sizes))
