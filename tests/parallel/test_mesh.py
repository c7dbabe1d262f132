import jax
import pytest
from jax.sharding import AxisType

from effarch.config import UserError
from effarch.parallel.mesh import MeshConfig, make_mesh


def test_minus_one_fills():
    mesh = make_mesh(MeshConfig(fsdp=2))
    assert dict(mesh.shape) == {"data": 4, "fsdp": 2, "tensor": 1, "context": 1}
    assert set(mesh.axis_types) == {AxisType.Auto}
    assert dict(make_mesh(MeshConfig(data=2, context=-1)).shape)["context"] == 4
    assert make_mesh(MeshConfig(), jax.devices()[:3]).devices.size == 3


@pytest.mark.parametrize(
    ("sizes", "message"),
    [
        ({"fsdp": 3}, r"mesh.data: expected fsdp \* tensor \* context to divide 8 devices, got 3"),
        ({"data": 2, "fsdp": 2}, r"mesh: expected data \* fsdp \* tensor \* context = 8 devices, got 4"),
        ({"fsdp": -1}, "mesh.fsdp: expected at most one -1, got -1 for data and fsdp"),
        ({"tensor": 0}, "mesh.tensor: expected -1 or a positive number of devices, got 0"),
        ({"context": -2}, "mesh.context: expected -1 or a positive number of devices, got -2"),
        ({"slices": 3}, "mesh.slices: expected a divisor of mesh.data = 8, got 3"),
        ({"slices": 2}, "mesh.slices: expected the number of processes of the devices, got 2"),
    ],
)
def test_sizes_that_do_not_fit(sizes, message):
    with pytest.raises(UserError, match=message):
        make_mesh(MeshConfig(**sizes))
