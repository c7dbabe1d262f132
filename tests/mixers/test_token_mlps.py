"""MLP-Mixer, gMLP and ResMLP against their equations in numpy, float64, one token and channel at a time."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from effarch.mixers import Context, LayerInfo
from effarch.mixers.fnet import FNet
from effarch.mixers.gmlp import GMLP
from effarch.mixers.mlp_mixer import MLPMixer
from effarch.mixers.resmlp import ResMLP
from tests.conformance.harness import Subject
from tests.tolerances import TOL, assert_close


def weights(name: str) -> dict[str, np.ndarray]:
    """The conformance subject's parameters by path, float64."""
    leaves = jax.tree.leaves_with_path(Subject.of("mixer", name).parameters())
    return {jax.tree_util.keystr(path, simple=True, separator="."): np.asarray(x, np.float64) for path, x in leaves}


def gelu(x: np.ndarray, approximate: bool) -> np.ndarray:
    if approximate:
        return 0.5 * x * (1 + np.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)))
    return 0.5 * x * (1 + np.vectorize(math.erf)(x / math.sqrt(2)))


def check(name: str, row) -> None:
    """The mixer in float64 against ``row(weights, x [T, D]) -> [T, D]``."""
    subject = Subject.of("mixer", name)
    with jax.enable_x64(True):
        x = subject.input(dtype=jnp.float64)
        y, _, _ = subject.run(x, form="parallel")
    w = {key.removesuffix(".value"): value for key, value in weights(name).items()}
    assert_close(y, np.stack([row(w, np.asarray(one)) for one in x]), TOL.f64)


def test_mlp_mixer():
    def row(w, x):
        y = np.empty_like(x)
        for d in range(x.shape[1]):
            hidden = gelu(w["mlp.up.bias"] + x[:, d] @ w["mlp.up.kernel"], approximate=True)
            y[:, d] = w["mlp.down.bias"] + hidden @ w["mlp.down.kernel"]
        return y

    check("mlp_mixer", row)


def test_resmlp():
    def row(w, x):
        y = np.empty_like(x)
        for t in range(x.shape[0]):
            seen = sum(w["patches.kernel"][s, t] * x[s] for s in range(x.shape[0]))
            y[t] = w["scale"] * (w["patches.bias"][t] + seen)
        return y

    check("resmlp", row)


def test_gmlp():
    def row(w, x):
        z = gelu(np.einsum("td,dzf->tzf", x, w["into.kernel"]) + w["into.bias"], approximate=False)
        kept, gate = z[:, 0], z[:, 1]
        mean, variance = gate.mean(axis=1, keepdims=True), gate.var(axis=1, keepdims=True)
        gate = (gate - mean) / np.sqrt(variance + 1e-5) * w["norm.weight"] + w["norm.bias"]
        y = np.empty((x.shape[0], w["out.kernel"].shape[1]))
        for t in range(x.shape[0]):
            seen = w["tokens.bias"][t] + sum(w["tokens.kernel"][s, t] * gate[s] for s in range(x.shape[0]))
            y[t] = (kept[t] * seen) @ w["out.kernel"] + w["out.bias"]
        return y

    check("gmlp", row)


def test_gmlp_begins_as_a_feed_forward_layer_on_each_token():
    """W near 0 and b = 1: the gate is 1, tokens all but ignore each other, and the layer learns from there."""
    subject = Subject.of("mixer", "gmlp")
    mixer = jax.jit(lambda: subject.config.make(subject.dim, layer=LayerInfo(), rngs=nnx.Rngs(0)))()
    ctx, _ = Context.of(1, subject.time)
    x = jnp.asarray(subject.input(batch=1))
    y, _, _ = mixer(x, None, ctx)
    moved, _, _ = mixer(x.at[0, 3].add(1.0), None, ctx)
    z = jax.nn.gelu(mixer.into(x), approximate=False)
    assert_close(y, mixer.out(z[:, :, 0]), 1e-2)
    others = np.delete(np.asarray(moved - y), 3, axis=1)
    assert 0 < np.abs(others).max() < 1e-2 < np.abs(np.asarray(moved - y)[:, 3]).max()


@pytest.mark.parametrize("shape", [(7, 5), (8, 6), (9, 8), (1, 4), (5, 1)])
def test_fnet_at_any_size(shape):
    """Odd and even: what the conjugate half of the spectrum is put together from."""
    x = np.random.default_rng(0).normal(size=(2, *shape))
    mixer = FNet().make(shape[1], layer=LayerInfo(), rngs=nnx.Rngs(0))
    with jax.enable_x64(True):
        y, _, _ = mixer(jnp.asarray(x), None, Context.of(2, shape[0])[0])
    assert_close(y, np.fft.fft2(x, axes=(1, 2)).real, TOL.f64)


@pytest.mark.parametrize("config", [MLPMixer(length=8), ResMLP(length=8), GMLP(length=8)], ids=lambda c: c.type_name)
def test_rows_of_another_length_and_documents_are_refused(config):
    mixer = config.make(4, layer=LayerInfo(), rngs=nnx.Rngs(0))
    with pytest.raises(
        ValueError, match=rf"length: expected rows of 8 tokens, as {config.type_name} is made for, got 9"
    ):
        mixer(jnp.zeros((1, 9, 4)), None, Context.of(1, 9)[0])
    packed, _ = Context.of(1, 8, segment_ids=jnp.ones((1, 8), jnp.int32))
    with pytest.raises(ValueError, match=rf"segment_ids: {config.type_name} mixes whole rows"):
        mixer(jnp.zeros((1, 8, 4)), None, packed)
