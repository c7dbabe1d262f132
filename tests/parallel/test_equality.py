"""A model of every mixer on eight devices is the model on one: value, every gradient, decoding; packed rows.

Parameters and activations lie as the one table of rules says (:mod:`effarch.parallel.rules`).
"""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from effarch import axes, registry
from effarch.distill.objectives import next_token
from effarch.parallel.mesh import MeshConfig, make_mesh
from effarch.parallel.rules import make_rules
from effarch.parallel.sharding import put_batch, variable_shardings
from tests.models import tiny
from tests.tolerances import TOL, assert_close

B, T = 8, 32
CAUSAL = [name for name, cls in registry.configs("mixer").items() if cls.tiny()[0].causal]
#: A ring and a recurrence; the others in `slow`, as other meshes are.
BY_DEFAULT = ("softmax_attention", "gated_deltanet")
MESHES = {
    "data tensor context": MeshConfig(data=2, tensor=2, context=2),
    "data": MeshConfig(data=8),
    "fsdp": MeshConfig(data=1, fsdp=8),
    "data fsdp": MeshConfig(data=2, fsdp=4),
    "fsdp tensor": MeshConfig(data=1, fsdp=4, tensor=2),
    "fsdp context": MeshConfig(data=1, fsdp=2, context=4),
    "data context": MeshConfig(data=4, context=2),
}


def cases():
    for name in CAUSAL:
        for mesh in MESHES:
            slow = name not in BY_DEFAULT or mesh != "data tensor context"
            yield pytest.param(name, mesh, id=f"{name} {mesh}", marks=[pytest.mark.slow] if slow else [])


def batch():
    """Rows of two documents and padding, ended where no device ends."""
    ids = np.ones((B, T), np.int32)
    ids[:, 13:] = 2
    ids[::2, T - 5 :] = 0
    tokens = np.asarray(tiny.tokens(B, T))
    return {"tokens": tokens, "segment_ids": ids, "loss_mask": (ids > 0).astype(np.float32)}


def rules_on(mesh: MeshConfig, name: str) -> axes.Rules:
    table = make_rules(make_mesh(mesh))
    if registry.get("mixer", name).context_parallel:
        return table
    return axes.Rules(table.mesh, tuple((axis, None if axis == "time" else over) for axis, over in table.table))


def step(graph, table, params, rows):
    """Loss and gradients of the trained variables."""
    with axes.rules(table):
        trained, fixed = nnx.split_state(params, nnx.Param, ...)

        def loss(trained):
            total, weight, _ = next_token(graph)(trained, fixed, rows, None)
            return total / weight

        return jax.value_and_grad(loss)(trained)


def decode(graph, table, params, tokens):
    """Hidden states of a prefill of all but four tokens, and of these one by one."""
    with axes.rules(table):
        lm = nnx.merge(graph, params)
        state = lm.init_state(B, T)
        out = lm.hidden(tokens[:, : T - 4], state)
        parts, state = [out.hidden], out.state
        for n in range(T - 4, T):
            out = lm.hidden(tokens[:, n : n + 1], state, form="recurrent")
            parts, state = [*parts, out.hidden], out.state
        return jnp.concatenate(parts, axis=1)


@pytest.mark.parametrize(("name", "mesh"), list(cases()))
def test_eight_devices_are_one(name, mesh):
    graph, params = tiny.split(tiny.config(name, layers=2).replace(vocab_size=64))
    rows, table = batch(), rules_on(MESHES[mesh], name)
    fast = partial(jax.jit, compiler_options=tiny.FAST)
    params = jax.tree.map(np.asarray, params)
    value, gradients = fast(partial(step, graph, None))(params, rows)
    placed = jax.device_put(params, variable_shardings(params, table))
    split, split_gradients = fast(partial(step, graph, table))(placed, put_batch(rows, table))
    assert_close(split, value, TOL.f32_forward)
    for (path, x), y in zip(jax.tree.leaves_with_path(split_gradients), jax.tree.leaves(gradients), strict=True):
        size = np.linalg.norm(np.asarray(y))
        assert_close(np.asarray(x), np.asarray(y), TOL.f32_grad, jax.tree_util.keystr(path), floor=1e-3 * size)


@pytest.mark.parametrize(("name", "mesh"), list(cases()))
def test_decoding_on_eight_devices_is_decoding_on_one(name, mesh):
    graph, params = tiny.split(tiny.config(name, layers=2).replace(vocab_size=64))
    table = rules_on(MESHES[mesh], name)
    fast = partial(jax.jit, compiler_options=tiny.FAST)
    params, tokens = jax.tree.map(np.asarray, params), batch()["tokens"]
    one = fast(partial(decode, graph, None))(params, tokens)
    placed = jax.device_put(params, variable_shardings(params, table))
    split = fast(partial(decode, graph, table))(placed, put_batch({"tokens": tokens}, table)["tokens"])
    assert_close(np.asarray(split), np.asarray(one), TOL.f32_forward)
