"""Every registered feature map as a layer, and the redrawing of random ones."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import effarch.mixers  # noqa: F401  (registers)
from effarch import axes, registry
from effarch.config import load, to_yaml
from effarch.mixers import LayerInfo
from effarch.mixers.hedgehog import HedgehogMapConfig
from effarch.mixers.performer import Performer
from effarch.nn.feature_map import RandomDirections, redraw

DIM, HEADS = 4, 2
NAMES = registry.names("feature_map")
CONFIGS = [registry.get("feature_map", name).tiny() for name in NAMES] + [HedgehogMapConfig(activation="exp")]


@pytest.mark.parametrize("config", CONFIGS, ids=lambda config: config.type_name)
def test_every_map_keeps_its_promises(config):
    """Width, scale, dtype and sign of the features; one token's features depend on no other token."""
    graph, state = nnx.split(jax.jit(lambda: config.make(DIM, HEADS, rngs=nnx.Rngs(0)))())
    phi = jax.jit(lambda x, positions: nnx.merge(graph, state)(x, positions))
    x = jnp.asarray(np.random.default_rng(0).normal(size=(2, 40, HEADS, DIM)), jnp.float32)
    positions = jnp.arange(40)[None]
    found = phi(x, positions)
    assert found.values.shape == (2, 40, HEADS, config.width(DIM)) and config.flops(DIM) > 0
    assert (found.log_scale is not None) == config.log_scaled
    low = phi(x.astype(jnp.bfloat16), positions)
    assert low.values.dtype == (jnp.float32 if config.type_name == "rebased" else jnp.bfloat16)
    for features in (found, low):
        whole = np.asarray(features.whole(), np.float32)
        assert (np.einsum("bthf,bshf->bhts", whole, whole) > -1e-6).all()
    other = phi(x.at[:, 2].set(0), positions)
    for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(other), strict=True):
        keep = np.arange(40) != 2
        assert (a[:, keep] == b[:, keep]).all()


@pytest.mark.parametrize("name", NAMES)
def test_every_config_is_complete(name):
    config = registry.get("feature_map", name).tiny()
    assert config.paper and to_yaml(config).startswith(f"type: {name}\n") and hash(config) == hash(config.replace())
    assert load(type(config), None, []) == type(config)()
    made = nnx.split(jax.eval_shape(lambda: config.make(DIM, HEADS, rngs=nnx.Rngs(0))), nnx.Param, ...)[1]
    for leaf in jax.tree.leaves(made, is_leaf=lambda x: isinstance(x, nnx.Variable)):
        names = leaf.get_metadata()["axes"]
        assert len(names) == leaf.ndim and all(name is None or name in axes.NAMES for name in names)


def test_hedgehog_begins_with_the_identity():
    phi = HedgehogMapConfig(activation="exp").make(DIM, HEADS, rngs=nnx.Rngs(0))
    x = jnp.asarray(np.random.default_rng(0).normal(size=(1, 3, HEADS, DIM)), jnp.float32)
    found = phi(x, jnp.arange(3)[None]).whole()
    np.testing.assert_allclose(found, np.exp(np.concatenate([x, -x], axis=-1)), rtol=1e-5)


def test_redrawing_is_pure_and_touches_random_features_only():
    """Single layers and layers stacked for a scan; a new key, other features; the old state stays as it was."""
    config, dim = Performer.tiny()

    def make(seed):
        return config.make(dim, layer=LayerInfo(), rngs=nnx.Rngs(jax.random.key(seed)))

    model = nnx.Dict(one=make(0), many=jax.vmap(make)(jnp.arange(3)))
    graph, params, rest = nnx.split(model, nnx.Param, ...)
    assert {type(x) for x in jax.tree.leaves(rest, is_leaf=lambda x: isinstance(x, nnx.Variable))} == {RandomDirections}
    old = [np.asarray(x) for x in jax.tree.leaves(rest)]
    new, same, other = (jax.tree.leaves(jax.jit(redraw)(rest, jax.random.key(seed))) for seed in (1, 1, 2))
    for a, b, c, before, now in zip(new, same, other, old, jax.tree.leaves(rest), strict=True):
        assert a.shape == before.shape and (a == b).all() and (a != c).any() and (a != before).any()
        assert (now == before).all()
    apart = [matrix for x in new for matrix in x.reshape(-1, *x.shape[-2:])]
    assert len(apart) == 4 and all((x != y).any() for i, x in enumerate(apart) for y in apart[:i])
    together = nnx.split(redraw(nnx.merge(graph, params, rest), jax.random.key(1)), nnx.Param, ...)
    assert all((x == y).all() for x, y in zip(jax.tree.leaves(together[2]), new, strict=True))
    assert all((x == y).all() for x, y in zip(jax.tree.leaves(together[1]), jax.tree.leaves(params), strict=True))
