import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jax.sharding import PartitionSpec as P

from effarch import axes
from effarch.config import UserError
from effarch.parallel import sharding
from effarch.parallel.mesh import MeshConfig, make_mesh
from effarch.parallel.rules import TABLE, make_rules
from tests.training import toy


def rules(**sizes):
    return make_rules(make_mesh(MeshConfig(**sizes)))


def test_the_table_knows_every_logical_axis():
    assert {name for name, _ in TABLE} == set(axes.NAMES)


def test_parameters_and_moments_are_split_alike():
    run = toy.setup(MeshConfig(data=2, fsdp=2, tensor=2), 8)
    adam = run.shardings.opt_state[1]
    for tree in (run.shardings.params, adam.mu, adam.nu):
        assert tree["embed"].get_value().spec == P(("tensor",), ("fsdp",))
        assert tree["layers"]["w"].get_value().spec == P(None, ("fsdp",), ("tensor",))  # stacked: one more in front
        assert tree["layers"]["b"].get_value().spec == P(None, ("tensor",))
    assert adam.count.spec == P() and run.shardings.rest["features"].get_value().spec == P()
    now = run.init()
    assert jax.tree.map(lambda x: x.sharding, now) == run.shardings
    w = now.opt_state[1].mu["layers"]["w"].get_value()
    assert w.addressable_shards[0].data.size * 4 == w.size  # no device holds the whole


def test_sharded_init_is_the_same():
    whole, split = toy.setup().init(), toy.setup(MeshConfig(data=2, fsdp=4), 8).init()
    assert toy.same_bits(whole, split)


def test_a_dimension_that_does_not_divide_is_named():
    state = nnx.State({"layers": {"w": nnx.Param(jnp.zeros((6, 8)), axes=("embed", "mlp"))}})
    message = r"mesh.fsdp: expected a divisor of 6, dimension 0 \(embed\) of layers.w \[6, 8\], got 4"
    with pytest.raises(UserError, match=message):
        sharding.variable_shardings(state, rules(fsdp=4, tensor=2, data=1))


def test_axes_that_do_not_fit():
    state = nnx.State({"w": nnx.Param(jnp.zeros((6, 8, 2)), axes=("embed",))})
    with pytest.raises(
        ValueError, match=r"axes: expected 3 names \(or one less, scanned\) for \(6, 8, 2\), got \('embed',\)"
    ):
        sharding.variable_shardings(state, rules())


def test_batch_is_split_over_data_and_fsdp():
    batch = sharding.put_batch(toy.batch_at(0, 0), rules(data=4, fsdp=2))
    assert batch["tokens"].sharding.spec == P(("data", "fsdp"))
    np.testing.assert_array_equal(batch["tokens"], toy.batch_at(0, 0)["tokens"])
    with pytest.raises(ValueError, match="batch_size: expected a multiple of 8 .*, got 12 rows"):
        sharding.put_batch({"tokens": np.zeros((12, 3), np.int32)}, rules())


def test_place_copies():
    run = toy.setup()
    params = run.init().params
    placed = sharding.place(params, run.shardings.params)
    jax.jit(lambda t: jax.tree.map(lambda x: x * 2, t), donate_argnums=0)(placed)
    assert all(np.isfinite(x).all() for x in jax.tree.leaves(params))  # donating the copy deletes nothing else


@pytest.mark.parametrize("sizes", [{"data": 4, "fsdp": 2}, {"data": 2, "tensor": 4}, {"tensor": 8}])
def test_a_batch_is_put_where_its_rows_are_held(sizes):
    table = rules(**sizes)
    assert sharding.held_rows(table, 16).tolist() == list(range(16))  # one process holds all
    batch = {"tokens": np.arange(48).reshape(16, 3), "weights": np.arange(16.0)}
    placed = sharding.put_batch(batch, table, 16)
    for name, x in batch.items():
        np.testing.assert_array_equal(placed[name], x)
        assert placed[name].sharding == sharding.batch_sharding(table)
