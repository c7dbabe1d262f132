import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from effarch.config import UserError
from effarch.training.optimizer import OptimizerConfig, decay_mask, make_optimizer, make_schedule
from tests.tolerances import TOL, assert_close
from tests.training import toy


def test_schedule_values():
    schedule = make_schedule(OptimizerConfig(learning_rate=2.0, warmup_steps=4, final_fraction=0.1), steps=14)
    assert_close([schedule(n) for n in range(4)], [0.5, 1.0, 1.5, 2.0], TOL.f32_forward)
    assert_close([schedule(n) for n in (4, 9, 14, 99)], [2.0, 1.1, 0.2, 0.2], TOL.f32_forward)
    assert_close(jax.jit(schedule)(jnp.int32(9)), 1.1, TOL.f32_forward)
    assert_close(make_schedule(OptimizerConfig(learning_rate=2.0), steps=10)(0), 2.0, TOL.f32_forward)
    with pytest.raises(UserError, match="warmup_steps: expected at most steps = 3, got 4"):
        make_schedule(OptimizerConfig(warmup_steps=4), steps=3)


def test_only_matrices_decay():
    params = toy.setup().init().params
    mask = decay_mask(params)
    found = {
        jax.tree_util.keystr(path, simple=True, separator="."): x
        for path, x in jax.tree_util.tree_leaves_with_path(mask)
    }
    matrices = {"embed.value": True, "layers.v.value": True, "layers.w.value": True}
    assert found == {**matrices, "gain.value": False, "layers.b.value": False}

    tx, _ = make_optimizer(OptimizerConfig(learning_rate=0.1, weight_decay=0.5), steps=10)
    updates, _ = jax.jit(lambda p: tx.update(jax.tree.map(jnp.zeros_like, p), tx.init(p), p))(params)
    assert_close(updates["embed"][...], -0.05 * params["embed"][...], TOL.f32_forward)
    assert_close(updates["layers"]["w"][...], -0.05 * params["layers"]["w"][...], TOL.f32_forward)
    assert not np.any(updates["gain"][...]) and not np.any(updates["layers"]["b"][...])


def test_clipping_is_of_the_global_norm():
    tx, _ = make_optimizer(OptimizerConfig(learning_rate=1.0, clip_norm=0.5, weight_decay=0.0, eps=10.0), steps=10)
    params = {"a": jnp.zeros((2, 2)), "b": jnp.zeros((3,))}
    grads = jax.tree.map(lambda x: jnp.full_like(x, 7.0), params)
    updates, _ = jax.jit(lambda g, p: tx.update(g, tx.init(p), p))(grads, params)
    small = 0.5 / np.sqrt(7)  # each entry of the clipped gradient
    for x in jax.tree.leaves(updates):
        assert_close(x, np.full(x.shape, -small / (small + 10.0)), TOL.f32_forward)
    assert_close(optax.tree.norm(grads), 7 * np.sqrt(7), TOL.f32_forward)


def test_config_is_checked():
    with pytest.raises(ValueError, match="learning_rate"):
        OptimizerConfig(learning_rate=-1.0)
