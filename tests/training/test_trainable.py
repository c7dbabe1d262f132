"""Selections: what is trained moves, what is not stays to the bit and costs no memory of the optimizer."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import effarch.training.lora  # noqa: F401  (registers)
from effarch import registry
from effarch.config import UserError
from effarch.models.lm import make_lm
from effarch.parallel.mesh import MeshConfig, make_mesh
from effarch.parallel.rules import make_rules
from effarch.training.lora import LoRA
from effarch.training.optimizer import OptimizerConfig, make_optimizer
from effarch.training.state import abstract_state, make_state
from effarch.training.step import make_step
from effarch.training.trainable import All, Mixers, Named, trains_of
from tests.models import tiny
from tests.tolerances import TOL, assert_close

CONFIG = tiny.config("retnet", layers=3)
SELECTIONS = {
    "all": All(),
    "all but channels": All(frozen=("channel", "embedding")),
    "mixers": Mixers(),
    "named": Named(names=("gate",)),
    "lora": LoRA(rank=2, alpha=6.0, channel=("up", "down")),
}


def flat(state) -> dict:
    return {"/".join(map(str, path)): np.asarray(x[...]) for path, x in nnx.to_flat_state(state)}


def parameters(lm) -> dict:
    return flat(nnx.split(lm, nnx.Param, ...)[1])


def moved(trains, steps: int = 2):
    """The state after some steps of a loss that every parameter has a gradient in, and parameters before and after."""
    lm = tiny.model(CONFIG)
    graph, params, rest = trains.split(lm)
    tx, _ = make_optimizer(OptimizerConfig(learning_rate=1e-2, weight_decay=0.5), steps)

    def of_model(params, rest, batch, rng):
        state = nnx.split(nnx.merge(graph, params, rest), nnx.Param, ...)[1]
        return sum(jnp.sum(jnp.sin(3 * x)) for x in jax.tree.leaves(state)), jnp.ones(()), {}

    step = jax.jit(make_step(trains.loss(of_model), tx), compiler_options=tiny.FAST)
    state = make_state(params, rest, tx, 0)
    before = parameters(trains.model(graph, params, rest))
    for _ in range(steps):
        state, _ = step(state, {"tokens": np.zeros((1, 1), np.int32)})
    return state, before, parameters(trains.model(graph, state.params, state.rest))


@pytest.mark.parametrize("name", SELECTIONS)
def test_what_is_selected_moves_and_nothing_else_does(name):
    trains = SELECTIONS[name]
    state, before, after = moved(trains)
    wanted = {
        "all": lambda path: True,
        "all but channels": lambda path: not {"channel", "embedding"} & path,
        "mixers": lambda path: {"mixer", "mixer_norm"} & path,
        "named": lambda path: "gate" in path,
        "lora": lambda path: "kernel" in path and {"q", "k", "v", "o", "up", "down"} & path,
    }[name]
    for path, x in before.items():
        assert bool((after[path] != x).any()) == bool(wanted(set(path.split("/")))), path
    sizes = [x.size for x in jax.tree.leaves(state.params)]
    moments = [x.size for x in jax.tree.leaves(state.opt_state) if x.ndim]
    assert sum(moments) == 2 * sum(sizes)  # and no mask or placeholder of what is frozen
    assert (name == "all") == (sum(sizes) == sum(x.size for x in before.values()))
    if name == "lora":
        kernels = [x.size for path, x in before.items() if wanted(set(path.split("/")))]
        assert sum(sizes) < 0.5 * sum(kernels)


def test_lora_is_the_base_with_a_low_rank_product_beside_it():
    """Every projection against the sum of two paths; at the beginning the adapted model is the base to the bit."""
    trains = LoRA(rank=3, alpha=6.0, channel=("down",))
    lm = tiny.model(CONFIG)
    graph, params, rest = jax.jit(trains.split)(lm)
    same = trains.model(graph, params, rest)
    assert tiny.same_bits(nnx.split(same)[1], nnx.split(lm)[1])
    assert nnx.split(same)[0] == nnx.split(lm)[0]

    rng = np.random.default_rng(0)
    params = jax.tree.map(lambda x: jnp.asarray(rng.normal(size=x.shape), x.dtype), params)
    before, after, adapters = parameters(lm), parameters(trains.model(graph, params, rest)), flat(params)
    assert {path.rsplit("/", 1)[1] for path in adapters} == {"a", "b"}
    seen = set()
    for path, a in adapters.items():
        at = path.rsplit("/", 1)[0]
        if path.endswith("/b") or at in seen:
            continue
        seen.add(at)
        b, kernel, merged = adapters[f"{at}/b"], before[f"{at}/kernel"], after[f"{at}/kernel"]
        for i in range(len(kernel)):  # the repetitions of the pattern
            inputs = a[i].ndim - 1
            x = rng.normal(size=(5, *kernel[i].shape[:inputs]))
            beside = np.tensordot(np.tensordot(x, a[i], inputs), b[i], 1)
            expected = np.tensordot(x, kernel[i], inputs) + 2.0 * beside
            found = np.tensordot(x, merged[i], inputs)
            np.testing.assert_allclose(found, expected, rtol=0, atol=1e-6 * np.abs(expected).max())
    assert len(seen) == 5  # q, k, v, o and down
    untouched = [path for path in before if path.rsplit("/", 1)[0] not in seen]
    assert untouched and all((before[path] == after[path]).all() for path in untouched)


def test_lora_finds_what_stands_for_attentions_projections():
    for mixer, names in (("rwkv7", "rkvo"), ("mamba2", "cbxo"), ("gated_deltanet", "qkvo")):
        lm = jax.eval_shape(lambda mixer=mixer: make_lm(tiny.config(mixer, layers=2)))
        _, params, _ = jax.eval_shape(LoRA(rank=2).split, lm)
        assert {path[-2] for path, _ in nnx.to_flat_state(params)} == set(names), mixer


def test_adapters_are_sharded_like_their_kernels():
    rules = make_rules(make_mesh(MeshConfig(data=1, fsdp=2, tensor=2), jax.devices()[:4]))
    trains, lm = LoRA(rank=2), tiny.model(CONFIG.replace(vocab_size=64))
    tx, _ = make_optimizer(OptimizerConfig(), 5)
    state = abstract_state(lambda: make_state(*trains.split(lm)[1:], tx, 0), tx, rules)
    block = state.params["stack"]["period"][0]["mixer"]["qkv"]
    kernels = state.rest["stack"]["period"][0]["mixer"]["qkv"]
    for name in ("q", "o"):
        a, b, kernel = (
            x.get_value().sharding.spec for x in (block[name]["a"], block[name]["b"], kernels[name]["kernel"])
        )
        inputs = len(a) - 2
        assert a[1 : 1 + inputs] == kernel[1 : 1 + inputs], name
        assert tuple(b)[2:] == tuple(kernel)[1 + inputs :], name
    assert any(any(spec for spec in x.sharding.spec) for x in jax.tree.leaves(state.opt_state) if x.ndim)


@pytest.mark.parametrize(
    ("trains", "line"),
    [
        (
            Named(names=("mixers",)),
            r"trains\.names: expected names in the model, found no 'mixers'; did you mean .mixer.",
        ),
        (All(frozen=("chanel",)), r"trains\.frozen: .*no 'chanel'; did you mean .channel."),
        (All(frozen=("embedding", "stack", "norm")), "trains: expected parameters to train, the selection leaves none"),
        (LoRA(mixer=("query",)), r"trains\.mixer: expected projections of the model \(gate, k, o, q, v\), got 'query'"),
        (LoRA(channel=("k",)), r"trains\.channel: expected projections of the model \(down, gate, up\), got 'k'"),
    ],
)
def test_mistakes_are_named(trains, line):
    with pytest.raises(UserError, match=line):
        jax.eval_shape(trains.split, tiny.model(CONFIG))


def test_a_selection_is_read_back_as_it_was_written():
    assert set(registry.names("trains")) == {"all", "lora", "mixers", "named"}
    for trains in SELECTIONS.values():
        assert trains_of(trains.model_dump(mode="json")) == trains
    assert trains_of(None) == All()


def test_an_adapted_model_predicts_what_the_merged_one_does():
    trains, lm = LoRA(rank=2), tiny.model(CONFIG.replace(vocab_size=64))
    graph, params, rest = trains.split(lm)
    params = jax.tree.map(lambda x: x + 0.1, params)
    tokens = tiny.tokens(2, 9)

    @jax.jit
    def adapted(params):
        model = nnx.merge(graph, *trains.whole(params, rest))
        return model.head(model.hidden(tokens).hidden)

    merged = trains.model(graph, params, rest)
    expected = jax.jit(lambda lm: lm.head(lm.hidden(tokens).hidden))(merged)
    assert_close(adapted(params), expected, TOL.f32_forward)
    assert np.abs(np.asarray(adapted(params)) - np.asarray(expected)).max() < 1e-6
