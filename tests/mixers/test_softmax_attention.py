"""Options of softmax attention: against float64, and in every mixer that is made of it."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from effarch import registry
from effarch.mixers import Context, LayerInfo
from effarch.mixers.softmax_attention import SoftmaxAttention
from effarch.nn.rope_scaling import LinearScaling
from tests.tolerances import TOL, assert_close

OPTIONS = {
    "rope_theta": 50.0,
    "rope_fraction": 0.5,
    "rope_scaling": LinearScaling(factor=3.0),
    "qkv_bias": True,
    "out_bias": True,
    "qk_norm": True,
    "qk_norm_plus_one": True,
    "qk_norm_eps": 0.01,
    "query_scale": 0.5,
    "gate": True,
}
KINDS = [
    pytest.param(name, marks=[] if name in ("softmax_attention", "sliding_window") else pytest.mark.slow)
    for name, cls in registry.configs("mixer").items()
    if issubclass(cls, SoftmaxAttention)
]


def made(name):
    """Every option on, every parameter drawn at random: ``(config, mixer, x)``."""
    config, dim = registry.get("mixer", name).tiny()
    config = config.replace(**OPTIONS, logit_cap=0.7 if config.caps_logits else None)
    mixer = jax.jit(lambda: config.make(dim, layer=LayerInfo(), rngs=nnx.Rngs(0)))()
    graph, params, fixed = nnx.split(mixer, nnx.Param, ...)
    rng = np.random.default_rng(1)
    params = jax.tree.map(lambda x: x + jnp.asarray(0.2 * rng.normal(size=x.shape), x.dtype), params)
    time = config.length if config.fixed_length else 20
    return config, nnx.merge(graph, params, fixed), jnp.asarray(rng.normal(size=(2, time, dim)), jnp.float32)


@partial(jax.jit, static_argnums=0)
def run(graph, params, fixed, x):
    return nnx.merge(graph, params, fixed)(x, None, Context.of(*x.shape[:2])[0])[0]


def test_all_options_in_float64():
    config, mixer, x = made("softmax_attention")
    weights = jax.tree.map(lambda w: np.asarray(w, np.float64), nnx.to_pure_dict(nnx.split(mixer)[1]))

    def project(name, kernel):
        return np.einsum("btd,dhk->bthk", x, kernel["kernel"]) + kernel.get("bias", 0.0)

    def normalised(y, weight):
        return y / np.sqrt((y**2).mean(axis=-1, keepdims=True) + 0.01) * (1 + weight)

    def rotated(y):
        half = config.head_dim // 4
        angle = np.arange(y.shape[1])[:, None] / 3 * 50.0 ** (-np.arange(half) / half)
        turned = (y[..., :half] + 1j * y[..., half : 2 * half]) * np.exp(1j * angle)[:, None]
        return np.concatenate([turned.real, turned.imag, y[..., 2 * half :]], axis=-1)

    q, k, v = (project(name, weights["qkv"][name]) for name in ("q", "k", "v"))
    q, k = (rotated(normalised(y, weights[f"{n}_norm"]["weight"])) for n, y in (("q", q), ("k", k)))
    k, v = (np.repeat(y, config.num_heads // config.num_kv_heads, axis=2) for y in (k, v))
    scores = 0.7 * np.tanh(np.einsum("bthk,bshk->bhts", q, k) * 0.5 / 0.7)
    scores = np.exp(scores) * np.tri(x.shape[1])
    o = np.einsum("bhts,bshk->bthk", scores / scores.sum(axis=-1, keepdims=True), v)
    o = o / (1 + np.exp(-project("gate", weights["gate"])))
    out = weights["qkv"]["o"]
    assert_close(
        run(*nnx.split(mixer, nnx.Param, ...), x),
        np.einsum("bthk,hkd->btd", o, out["kernel"]) + out["bias"],
        TOL.f32_forward,
    )


@pytest.mark.parametrize("name", KINDS)
def test_every_mixer_made_of_it_has_its_options(name):
    """Each parameter moves the output, and so do the rotated share of a head and the norms' one."""
    config, mixer, x = made(name)
    graph, params, fixed = nnx.split(mixer, nnx.Param, ...)
    weight = jnp.asarray(np.random.default_rng(2).normal(size=x.shape), jnp.float32)
    grads = jax.jit(jax.grad(lambda params: (run(graph, params, fixed, x) * weight).sum()))(params)
    for path, leaf in jax.tree.leaves_with_path(grads):
        assert jnp.isfinite(leaf).all()
        what = jax.tree_util.keystr(path)
        assert (jnp.abs(leaf) > 1e-7).any(), what
    y = run(graph, params, fixed, x)
    for change in ({"rope_fraction": 1.0}, {"qk_norm_plus_one": False}, {"rope_scaling": None}, {"query_scale": None}):
        other = config.replace(**change)
        made_so = jax.eval_shape(lambda c=other: c.make(x.shape[-1], layer=LayerInfo(), rngs=nnx.Rngs(0)))
        graph = nnx.split(made_so, nnx.Param, ...)[0]
        assert jnp.linalg.norm(run(graph, params, fixed, x) - y) > 1e-3 * jnp.linalg.norm(y), change


@pytest.mark.parametrize("name", KINDS)
def test_every_mixer_made_of_it_takes_them_over(name):
    """Config and weights, to the bit; what a student's config says itself stays."""
    teacher, mixer, x = made("softmax_attention")
    cls = registry.get("mixer", name)
    config = cls().matching(teacher)
    for field in set(SoftmaxAttention.model_fields) - (set() if cls.caps_logits else {"logit_cap"}):
        assert getattr(config, field) == getattr(teacher, field), field
    assert cls(num_heads=16, num_kv_heads=16, rope_fraction=0.25).matching(teacher).rope_fraction == 0.25
    student = config.make(x.shape[-1], layer=LayerInfo(), rngs=nnx.Rngs(3)).from_attention(mixer)
    part = getattr(student, "window", student)  # of window_recurrence, the attention in it
    mine = dict(jax.tree.leaves_with_path(nnx.split(part)[1]))
    for path, leaf in jax.tree.leaves_with_path(nnx.split(mixer)[1]):
        assert (mine[path] == leaf).all(), jax.tree_util.keystr(path)
