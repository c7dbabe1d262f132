"""Linformer and the Nystrom method against numpy in float64, and against what they approximate."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from effarch.mixers import Context
from effarch.mixers.linformer import Linformer
from effarch.ops.attention.nystrom import nystrom_attention, pseudo_inverse, segment_means
from tests.conformance.harness import Subject
from tests.tolerances import TOL, assert_close


def softmax(x):
    x = np.exp(x - x.max(axis=-1, keepdims=True))
    return x / x.sum(axis=-1, keepdims=True)


def draws(time, batch=2, heads=2, width=4, seed=0):
    rng = np.random.default_rng(seed)
    return rng.normal(size=(3, batch, time, heads, width))


def by_hand(q, k, v, m):
    """One matrix at a time, the pseudo-inverse exact."""
    o = np.empty_like(v)
    edges = [int(np.ceil(i * q.shape[1] / m)) for i in range(m + 1)]
    for b in range(q.shape[0]):
        for h in range(q.shape[2]):
            a, c, w = q[b, :, h] / q.shape[-1] ** 0.25, k[b, :, h] / q.shape[-1] ** 0.25, v[b, :, h]
            am, cm = (np.stack([x[i:j].mean(axis=0) for i, j in itertools.pairwise(edges)]) for x in (a, c))
            o[b, :, h] = softmax(a @ cm.T) @ np.linalg.pinv(softmax(am @ cm.T)) @ (softmax(am @ c.T) @ w)
    return o


@pytest.mark.parametrize("time", [12, 17, 40])
def test_nystrom_attention_is_the_papers_with_an_exact_inverse(time, monkeypatch):
    q, k, v = draws(time)
    monkeypatch.setattr("effarch.ops.attention.nystrom.pseudo_inverse", jnp.linalg.pinv)
    with jax.enable_x64(True):
        found = nystrom_attention(*(jnp.asarray(x) for x in (q, k, v)), landmarks=5)
    assert_close(found, by_hand(q, k, v, 5), 1e-9)


def test_the_iteration_converges_to_the_inverse_and_each_matrix_has_its_own_scale():
    rng = np.random.default_rng(3)
    a = softmax(rng.normal(size=(3, 8, 8)) + 3 * np.eye(8))
    with jax.enable_x64(True):
        far = pseudo_inverse(jnp.asarray(a), iterations=20)
        six = pseudo_inverse(jnp.asarray(a))
        alone = pseudo_inverse(jnp.asarray(a[1]))
    assert_close(far, np.linalg.inv(a), 1e-9)
    assert_close(six[1], alone, TOL.f64)


def test_means_of_uneven_segments():
    x = np.arange(7.0).reshape(1, 7, 1, 1)
    assert segment_means(jnp.asarray(x, jnp.float32), 3)[0, :, 0, 0].tolist() == [1.0, 3.5, 5.5]  # 0-2, 3-4, 5-6


def test_short_rows_are_softmax_attention():
    q, k, v = draws(5)
    with jax.enable_x64(True):
        found = nystrom_attention(*(jnp.asarray(x) for x in (q, k, v)), landmarks=5)
    scores = np.einsum("bthk,bshk->bhts", q, k) / q.shape[-1] ** 0.5
    assert_close(found, np.einsum("bhts,bshv->bthv", softmax(scores), v), TOL.f64)


@pytest.mark.parametrize("share", ["none", "heads", "keys_and_values"])
def test_linformer_is_attention_to_projected_keys_and_values(share):
    config, dim = Linformer.tiny()
    config = config.replace(share=share, rope_theta=None)
    with jax.enable_x64(True):
        mixer = jax.jit(lambda: _module(config, dim))()
        x = np.random.default_rng(1).normal(size=(2, config.length, dim))
        ctx, _ = Context.of(2, config.length)
        found = mixer(jnp.asarray(x), None, ctx)[0]
    q, k, v = (np.einsum("btd,dhk->bthk", x, np.asarray(getattr(mixer.qkv, n).kernel[...], np.float64)) for n in "qkv")
    e = np.asarray(mixer.keys[...], np.float64)
    f = e if mixer.values is None else np.asarray(mixer.values[...], np.float64)
    assert len(e) == (4 if share == "none" else 1)
    e, f = (np.broadcast_to(y, (4, *y.shape[1:])) for y in (e, f))
    k, v = np.einsum("bshk,hsr->brhk", k, e), np.einsum("bshk,hsr->brhk", v, f)
    weights = softmax(np.einsum("bthk,brhk->bhtr", q, k) / config.head_dim**0.5)
    o = np.einsum("bhtr,brhv->bthv", weights, v)
    assert_close(found, np.einsum("bthv,hvd->btd", o, np.asarray(mixer.qkv.o.kernel[...], np.float64)), 1e-6)


def _module(config, dim):
    from flax import nnx

    from effarch.mixers import LayerInfo

    return config.make(dim, layer=LayerInfo(), rngs=nnx.Rngs(0))


@pytest.mark.parametrize("name", ["linformer", "nystromformer"])
def test_documents_and_other_lengths_are_refused(name):
    subject = Subject.of("mixer", name)
    x = subject.input()
    with pytest.raises(ValueError, match="segment_ids"):
        subject.run(x, segment_ids=np.ones(x.shape[:2]))
    if subject.config.fixed_length:
        with pytest.raises(ValueError, match="length: expected rows of 24 tokens"):
            subject.run(subject.input(time=25))
