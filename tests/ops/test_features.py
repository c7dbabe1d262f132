"""Feature maps against their definitions, in float64."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from effarch.ops import features
from effarch.ops.features import Features
from tests.tolerances import TOL, assert_close

WIDTH = 6
DIRECTIONS = np.random.default_rng(7).normal(size=(10, WIDTH))
POSITIONS = np.asarray([[0, 1, 2, 40, 63, 64, 65, 300, 5]])


def softmax(x):
    e = np.exp(x - x.max(-1, keepdims=True))
    return e / e.sum(-1, keepdims=True)


def both(x):
    return np.concatenate([x, -x], axis=-1)


def turned(x):
    angle = np.pi / 2 * np.minimum(POSITIONS, 64)[..., None, None] / 64
    return np.concatenate([np.maximum(x, 0) * np.cos(angle), np.maximum(x, 0) * np.sin(angle)], axis=-1)


def random_features(x):
    x = x / x.shape[-1] ** 0.25
    return np.exp(x @ DIRECTIONS.T) * np.exp(-(x**2).sum(-1, keepdims=True) / 2) / math.sqrt(len(DIRECTIONS))


#: ours, and the definition in numpy
MAPS = {
    "elu": (features.elu_plus_one, lambda x: np.where(x > 0, x + 1, np.exp(np.minimum(x, 0)))),
    "softmax_pair": (features.softmax_pair, lambda x: np.concatenate([softmax(x), softmax(-x)], axis=-1)),
    "joint_softmax": (features.joint_softmax, lambda x: softmax(2 * both(x))),
    "signed_exponentials": (features.signed_exponentials, lambda x: np.exp(both(x))),
    "cosine": (lambda x: features.cosine(jax.nn.relu(x), jnp.asarray(POSITIONS), 64), turned),
    "positive_random": (lambda x: features.positive_random(x, jnp.asarray(DIRECTIONS, x.dtype)), random_features),
}
QUADRATIC = {"second_order": features.second_order, "taylor": features.taylor}


def inputs(width=WIDTH, seed=0):
    """``[1, T, 2, width]``: small, and beyond what exp takes in float32."""
    x = np.random.default_rng(seed).normal(size=(1, POSITIONS.size, 2, width))
    return np.where(np.arange(POSITIONS.size)[:, None, None] % 3 == 2, 4.0, 1.0) * x


def whole(phi):
    return phi.whole() if isinstance(phi, Features) else phi


@pytest.mark.parametrize("name", MAPS)
def test_maps_are_their_definitions(name):
    ours, definition = MAPS[name]
    with jax.enable_x64(True):
        found = whole(ours(jnp.asarray(inputs(), jnp.float64)))
        assert found.dtype == jnp.float64
        assert_close(found, definition(inputs()), TOL.f64)
        assert (found >= 0).all()
    assert_close(whole(ours(jnp.asarray(inputs(), jnp.float32))), definition(inputs()), TOL.f32_forward)


@pytest.mark.parametrize("width", [1, 2, 3, 4, 5, 8, 15, 16])
def test_quadratic_maps_are_their_polynomials(width):
    """Every product of entries is there once, for odd and even widths."""
    q, k = inputs(width, 1), inputs(width, 2)
    dots = (q * k).sum(-1)
    with jax.enable_x64(True):
        for name, weights in (
            ("second_order", dots**2 / width),
            ("taylor", 1 + dots / math.sqrt(width) + dots**2 / width / 2),
        ):
            phi_q, phi_k = (QUADRATIC[name](jnp.asarray(x, jnp.float64)) for x in (q, k))
            assert_close((phi_q * phi_k).sum(-1), weights, TOL.f64, name)
            pairs = width * (width + 1) // 2
            assert phi_q.shape[-1] == (pairs if name == "second_order" else 1 + width + pairs)


def test_cosine_weights_are_relative_and_never_negative():
    """The weight falls with the distance, to 0 at ``length``, and stays there: documents longer than ``length`` too."""
    positions, length = jnp.arange(200)[None], 64
    phi = features.cosine(jnp.ones((1, 200, 1, 1), jnp.float32), positions, length)[0, :, 0]
    weights = np.asarray(phi @ phi.T)
    i, j = np.tril_indices(64)
    assert_close(weights[i, j], np.cos(np.pi / 2 * (i - j) / length), TOL.f32_forward)
    assert weights.min() > -1e-6 and abs(weights[199, 0]) < 1e-6


@pytest.mark.parametrize("name", ["signed_exponentials", "positive_random"])
def test_scaled_features_stay_in_range_and_keep_the_gradient(name):
    ours, _ = MAPS[name]
    phi = ours(jnp.asarray(100 * inputs(), jnp.float32))
    assert jnp.isfinite(phi.log_scale).all() and jnp.abs(phi.log_scale).max() > 100
    assert phi.values.min() >= 0 and (phi.values.max(axis=-1) == 1).all()
    with jax.enable_x64(True):
        x = jnp.asarray(inputs(), jnp.float64)
        weight = jnp.asarray(np.random.default_rng(3).normal(size=x.shape))
        slope = jax.jvp(lambda x: ours(x).whole(), (x,), (weight,))[1]
        step = 1e-6
        rise = (MAPS[name][1](np.asarray(x + step * weight)) - MAPS[name][1](np.asarray(x - step * weight))) / (2 * step)
        assert_close(slope, rise, 1e-7)


@pytest.mark.parametrize("name", [*MAPS, *QUADRATIC])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_huge_inputs_have_finite_features_and_gradients(name, dtype):
    ours = MAPS[name][0] if name in MAPS else QUADRATIC[name]

    def values(x):
        phi = ours(x)
        return phi.values if isinstance(phi, Features) else phi

    for size in (0.0, 1e4):
        x = jnp.asarray(size * inputs(), dtype)
        phi, pull = jax.vjp(values, x)
        assert phi.dtype == x.dtype and jnp.isfinite(phi).all()
        assert jnp.isfinite(pull(jnp.ones_like(phi))[0]).all()


def test_small_weights_of_elu_are_not_rounded_away():
    assert_close(features.elu_plus_one(jnp.float32(-30.0)), math.exp(-30), TOL.f32_forward, floor=0)
    assert jax.grad(features.elu_plus_one)(jnp.float32(0.0)) == 1


def draws(count, number, width=WIDTH):
    keys = jax.random.split(jax.random.key(0), number)
    return jax.jit(jax.vmap(lambda key: features.orthogonal_features(key, count, width)))(keys)


def test_random_directions_are_orthogonal_in_blocks_and_each_is_normal():
    w = np.asarray(draws(10, 4000), np.float64)
    gram = np.einsum("nik,njk->nij", w, w)
    block = np.arange(10) // WIDTH
    same = (block[:, None] == block) & ~np.eye(10, dtype=bool)
    assert np.abs(gram[:, same]).max() < 1e-5 and np.abs(gram[:, block[:, None] != block]).max() > 1
    # Moments of a standard normal vector, within five standard errors: mean, covariance, fourth moment of the length.
    assert np.abs(w.mean(0)).max() < 5 / math.sqrt(4000)
    second = np.einsum("nik,nil->ikl", w, w) / 4000
    assert np.abs(second - np.eye(WIDTH)).max() < 5 * math.sqrt(2 / 4000)
    fourth = ((w**2).sum(-1) ** 2).mean()
    assert abs(fourth - WIDTH * (WIDTH + 2)) < 0.05 * WIDTH * (WIDTH + 2)


def test_random_features_are_unbiased():
    """The mean over draws is the softmax kernel, and orthogonal directions vary less than independent ones."""
    rng = np.random.default_rng(0)
    q, k = (jnp.asarray(x, jnp.float32) for x in rng.normal(size=(2, 5, WIDTH)))
    number = 20000

    @jax.jit
    def kernel(w):
        phi_q, phi_k = features.positive_random(q, w).whole(), features.positive_random(k, w).whole()
        return (phi_q * phi_k).sum(-1)

    found = np.asarray(jax.lax.map(kernel, draws(WIDTH, number)), np.float64)
    true = np.exp((np.asarray(q) * np.asarray(k)).sum(-1) / math.sqrt(WIDTH))
    error = found.std(0) / math.sqrt(number)
    assert (np.abs(found.mean(0) - true) < 4 * error).all() and (error < 0.02 * true).all()
    apart = jax.random.normal(jax.random.key(1), (number, WIDTH, WIDTH), jnp.float32)
    assert (found.var(0) < np.asarray(jax.lax.map(kernel, apart), np.float64).var(0)).all()
