"""What is particular to linear attention: options that no tiny config has, and what becomes of a teacher's weights."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from effarch.config import load
from effarch.mixers import Context, LayerInfo
from effarch.mixers.based import Based
from effarch.mixers.hedgehog import Hedgehog, HedgehogMapConfig
from effarch.mixers.linear_attention import LinearAttention
from effarch.mixers.performer import Performer, PerformerMapConfig
from effarch.mixers.softmax_attention import SoftmaxAttention
from tests.ops.recurrence_cases import random_segments
from tests.tolerances import TOL, assert_close

B, T, DIM = 2, 40, 16
SIZES = {"num_heads": 4, "num_kv_heads": 2, "head_dim": 4, "value_head_dim": 6}
OPTIONS = {
    "unnormalised": LinearAttention(**SIZES, normalise=False, output_norm=True),
    "unnormalised_performer": Performer(**SIZES, normalise=False, feature_map=PerformerMapConfig(num_features=6)),
    "hedgehog_exp": Hedgehog(**SIZES, feature_map=HedgehogMapConfig(activation="exp")),
    "hedgehog_joint": Hedgehog(**SIZES, feature_map=HedgehogMapConfig(activation="joint_softmax")),
}


def inputs(seed=0, size=1.0):
    return jnp.asarray(size * np.random.default_rng(seed).normal(size=(B, T, DIM)), jnp.float32)


def apply(mixer, x, segment_ids=None, form="chunkwise"):
    return mixer(x, None, Context.of(*x.shape[:2], segment_ids=segment_ids, form=form)[0])[0]


@partial(jax.jit, static_argnums=(0, 4))
def gradients(graph, params, x, ids, form):
    y, pull = jax.vjp(lambda params, x: apply(nnx.merge(graph, params), x, ids, form), params, x)
    return y, pull(jnp.cos(x))


@pytest.mark.parametrize("name", OPTIONS)
def test_forms_of_other_options_agree(name):
    graph, params = nnx.split(jax.jit(lambda: OPTIONS[name].make(DIM, layer=LayerInfo(), rngs=nnx.Rngs(0)))())
    ids, x = random_segments(np.random.default_rng(6), B, T), inputs()
    real = np.asarray(ids > 0)[..., None]
    with jax.enable_x64(True):
        wide = jax.tree.map(lambda y: jnp.asarray(np.asarray(y), jnp.float64), (params, x))
        y, exact = gradients(graph, *wide, ids, "parallel")
    for form in ("chunkwise", "recurrent"):
        found, pulled = gradients(graph, params, x, ids, form)
        assert_close(np.asarray(found) * real, np.asarray(y) * real, TOL.f32_forward)
        for a, b in zip(jax.tree.leaves(pulled), jax.tree.leaves(exact), strict=True):
            assert_close(a, b, TOL.f32_grad)


def test_without_a_denominator_outputs_are_scaled_sums():
    """elu + 1 by hand: ``sum phi(q).phi(k) v / sqrt(F)``, a norm per head behind it."""
    config = LinearAttention(num_heads=2, head_dim=4, value_head_dim=4, normalise=False)
    with jax.enable_x64(True):
        mixer = jax.tree.map(lambda y: y.astype(jnp.float64), config.make(DIM, layer=LayerInfo(), rngs=nnx.Rngs(0)))
        x = inputs().astype(jnp.float64)
        q, k, v = (np.asarray(y) for y in mixer.qkv(x))
        q, k = (np.where(y > 0, y + 1, np.exp(np.minimum(y, 0))) for y in (q, k))
        weights = np.tril(np.einsum("bthk,bshk->bhts", q, k)) / 2
        o = np.einsum("bhts,bshv->bthv", weights, v)
        kernel = np.asarray(mixer.qkv.o.kernel[...])
        assert_close(apply(mixer, x), np.einsum("bthv,hvd->btd", o, kernel), TOL.f64)
        normed = config.replace(output_norm=True).make(DIM, layer=LayerInfo(), rngs=nnx.Rngs(0))
        normed = jax.tree.map(lambda y: y.astype(jnp.float64), normed)
        o = o / np.sqrt((o**2).mean(-1, keepdims=True) + config.norm_eps)
        assert_close(apply(normed, x), np.einsum("bthv,hvd->btd", o, kernel), TOL.f64)


def teacher(rope_theta=1e4):
    config = SoftmaxAttention(num_heads=4, num_kv_heads=2, head_dim=8, rope_theta=rope_theta)
    return config, config.make(DIM, layer=LayerInfo(), rngs=nnx.Rngs(1))


def student(config, attention, seed=0):
    return config.make(DIM, layer=LayerInfo(), rngs=nnx.Rngs(seed)).from_attention(attention)


@pytest.mark.slow
def test_a_performer_is_its_teacher_up_to_the_variance_of_its_features():
    """Nothing is trained: the error falls with the number of features."""
    config, attention = teacher()
    x, errors = inputs(size=0.5), []
    for count in (64, 4096):
        performer = Performer(feature_map=PerformerMapConfig(num_features=count)).matching(config)
        assert (performer.kv_heads, performer.head_dim, performer.rope_theta) == (2, 8, 1e4)
        y, true = apply(student(performer, attention), x), apply(attention, x)
        errors.append(float(jnp.linalg.norm(y - true) / jnp.linalg.norm(true)))
    assert errors[1] < 0.05 and errors[1] < errors[0] / 3


def test_taylor_features_are_their_teacher_where_scores_are_small():
    """The error of a second-order polynomial: inputs half as large, about 2^6 times smaller."""
    config, attention = teacher()
    based = student(Based().matching(config), attention)
    errors = []
    for size in (0.5, 0.25):
        y, true = apply(based, inputs(size=size)), apply(attention, inputs(size=size))
        errors.append(float(jnp.linalg.norm(y - true) / jnp.linalg.norm(true)))
    assert errors[0] < 0.05 and errors[1] < errors[0] / 40


def test_maps_are_chosen_by_name():
    config = load(LinearAttention, None, ["feature_map.type=performer", "feature_map.num_features=32"])
    assert config.feature_map == PerformerMapConfig(num_features=32)
    assert load(Hedgehog, None, ["feature_map.activation=exp"]).feature_map == HedgehogMapConfig(activation="exp")
    with pytest.raises(ValueError, match="num_kv_heads: expected a divisor of num_heads 8, got 3"):
        LinearAttention(num_kv_heads=3)
