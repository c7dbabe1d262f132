"""A model of every mixer on eight devices is the model on one: value, every gradient, decoding; packed rows.

Parameters and activations lie as the one table of rules says (:mod:`effarch.parallel.rules`).
"""

from functools import lru_cache, partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from effarch import axes, registry
from effarch.distill.objectives import classification, next_token
from effarch.models.classifier import ClassifierConfig, make_classifier
from effarch.models.inputs import Ids
from effarch.parallel.mesh import MeshConfig, make_mesh
from effarch.parallel.rules import make_rules
from effarch.parallel.sharding import put_batch, variable_shardings
from tests.models import tiny
from tests.tolerances import TOL, assert_close

B, T, VOCAB = 8, 32, 64
MIXERS = registry.configs("mixer")
CAUSAL = [name for name, cls in MIXERS.items() if cls.tiny()[0].causal]
#: A ring and a recurrence; the others in `slow`, as other meshes are.
BY_DEFAULT = ("softmax_attention", "gated_deltanet")
#: Tokens of another seed: with those of seed 0, half an ulp in the parameters moves this one's gradients by 2e-4
#: on one device: some token's output is zero but for rounding, and a norm divides by it.
SEEDS = {"window_recurrence": 1}
MESHES = {
    "data tensor context": MeshConfig(data=2, tensor=2, context=2),
    "data": MeshConfig(data=8),
    "fsdp": MeshConfig(data=1, fsdp=8),
    "data fsdp": MeshConfig(data=2, fsdp=4),
    "fsdp tensor": MeshConfig(data=1, fsdp=4, tensor=2),
    "fsdp context": MeshConfig(data=1, fsdp=2, context=4),
    "data context": MeshConfig(data=4, context=2),
}


def cases(names, by_default=BY_DEFAULT):
    for name in names:
        for mesh in MESHES:
            slow = name not in by_default or mesh != "data tensor context"
            marks = [pytest.mark.xdist_group(name), *([pytest.mark.slow] if slow else [])]
            yield pytest.param(name, mesh, id=f"{name} {mesh}", marks=marks)


def ids():
    """Rows of two documents and padding, ended where no device ends."""
    found = np.ones((B, T), np.int32)
    found[:, 13:] = 2
    found[::2, T - 5 :] = 0
    return found


@lru_cache(1)
def subject(name):
    """Graph, parameters, loss and rows of a language model, or of a classifier where the mixer looks ahead."""
    if name in CAUSAL:
        graph, params = tiny.split(tiny.config(name, layers=2).replace(vocab_size=VOCAB))
        tokens, documents = np.asarray(tiny.tokens(B, T, SEEDS.get(name, 0))), ids()
        rows = {"tokens": tokens, "segment_ids": documents, "loss_mask": (documents > 0).astype(np.float32)}
        return graph, jax.tree.map(np.asarray, params), next_token, rows
    mixer, dim = MIXERS[name].tiny()
    time = mixer.length if mixer.fixed_length else T
    block = tiny.block(name).replace(channel=registry.get("channel", "gelu_mlp")(hidden=48))
    config = ClassifierConfig(
        input=Ids(vocab_size=VOCAB, length=time), classes=4, dim=dim, num_layers=2, pattern=(block,)
    )
    graph, params, fixed = nnx.split(jax.jit(partial(make_classifier, config))(), nnx.Param, ...)
    rng = np.random.default_rng(1)
    params = jax.tree.map(lambda x: np.asarray(x + 0.15 * rng.normal(size=x.shape), x.dtype), params)
    rows = {"inputs": np.asarray(tiny.tokens(B, time)), "labels": np.arange(B, dtype=np.int32) % 4}
    rows |= {"weights": np.arange(B, dtype=np.float32)}
    if mixer.packed:
        rows["mask"] = ids()[:, :time] > 0
    return graph, nnx.merge_state(params, jax.tree.map(np.asarray, fixed)), classification, rows


def rules_on(mesh: MeshConfig, name: str) -> axes.Rules:
    table = make_rules(make_mesh(mesh))
    if registry.get("mixer", name).context_parallel:
        return table
    return axes.Rules(table.mesh, tuple((axis, None if axis == "time" else over) for axis, over in table.table))


def step(graph, loss_of, table, params, rows):
    """Loss and gradients of the trained variables."""
    with axes.rules(table):
        trained, fixed = nnx.split_state(params, nnx.Param, ...)

        def loss(trained):
            total, weight, _ = loss_of(graph)(trained, fixed, rows, None)
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


fast = partial(jax.jit, compiler_options=tiny.FAST)


@lru_cache(1)
def step_on_one(name):
    """What one device finds."""
    graph, params, loss, rows = subject(name)
    return jax.tree.map(np.asarray, fast(partial(step, graph, loss, None))(params, rows))


@lru_cache(1)
def decoded_on_one(name):
    graph, params, _, rows = subject(name)
    return np.asarray(fast(partial(decode, graph, None))(params, rows["tokens"]))


@pytest.mark.parametrize(("name", "mesh"), list(cases(MIXERS)))
def test_eight_devices_are_one(name, mesh):
    graph, params, loss, rows = subject(name)
    table = rules_on(MESHES[mesh], name)
    value, gradients = step_on_one(name)
    placed = jax.device_put(params, variable_shardings(params, table))
    split, split_gradients = fast(partial(step, graph, loss, table))(placed, put_batch(rows, table))
    assert_close(split, value, TOL.f32_forward)
    leaves = jax.tree.leaves(gradients)
    whole = np.sqrt(sum(np.linalg.norm(y) ** 2 for y in leaves))  # what is zero but for rounding is small beside it
    allowed = 2 * TOL.f32_grad  # both are float32: each may be that far from the truth, on either side of it
    for (path, x), y in zip(jax.tree.leaves_with_path(split_gradients), leaves, strict=True):
        assert_close(np.asarray(x), y, allowed, jax.tree_util.keystr(path), floor=1e-3 * whole)


@pytest.mark.parametrize(("name", "mesh"), list(cases(CAUSAL, ("softmax_attention",))))
def test_decoding_on_eight_devices_is_decoding_on_one(name, mesh):
    graph, params, _, rows = subject(name)
    table, tokens = rules_on(MESHES[mesh], name), rows["tokens"]
    placed = jax.device_put(params, variable_shardings(params, table))
    split = fast(partial(decode, graph, table))(placed, put_batch({"tokens": tokens}, table)["tokens"])
    assert_close(np.asarray(split), decoded_on_one(name), TOL.f32_forward)
