"""Positions that depend on the document: learned ones, and wavelengths chosen by how far a document reaches."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from effarch.mixers.softmax_attention import SoftmaxAttention
from effarch.mixers.swiglu import SwiGLU
from effarch.models.block import BlockConfig
from effarch.models.lm import LMConfig, make_lm
from effarch.nn.rope_scaling import DynamicScaling, LongRopeScaling, YarnScaling
from effarch.nn.rotary import rotate
from tests.tolerances import TOL, assert_close

LONG = LongRopeScaling(short_factor=(1.0, 1.5), long_factor=(2.0, 5.0), original_length=7, attention_factor=1.2)
SIZES = {"num_heads": 2, "num_kv_heads": 1, "head_dim": 4, "rope_theta": 30.0}
CONFIG = LMConfig(
    vocab_size=16,
    dim=8,
    num_layers=2,
    pattern=(BlockConfig(mixer=SoftmaxAttention(**SIZES, rope_scaling=LONG), channel=SwiGLU(hidden=12, bias=True)),),
    learned_positions=10,
    parallel_blocks=True,
    post_norms=True,
    embed_scale=3.0,
)


@pytest.fixture(scope="module")
def parts():
    """Graph and parameters, every one moved from where it starts."""
    graph, params = nnx.split(jax.jit(lambda: make_lm(CONFIG))())
    rng = np.random.default_rng(0)
    return graph, jax.tree.map(lambda x: jnp.asarray(x + rng.normal(size=x.shape), x.dtype), params)


@partial(jax.jit, static_argnums=0)
def logits(graph, params, tokens, ids):
    return nnx.merge(graph, params)(tokens, segment_ids=ids)[0]


def test_packed_documents_have_positions_and_wavelengths_of_their_own(parts):
    """A long one beside a short one, against the same two in rows of their own."""
    tokens = np.random.default_rng(1).integers(0, 16, (2, 16))
    packed = np.asarray([[3] * 9 + [0] * 2 + [5] * 5, [0] * 3 + [2] * 5 + [9] * 8])
    together = logits(*parts, tokens, packed)
    for row, name in ((0, 3), (0, 5), (1, 2), (1, 9)):
        own = packed[row] == name
        text = np.zeros_like(tokens)
        text[0, : own.sum()] = tokens[row, own]
        alone = logits(*parts, text, (np.arange(16)[None] < own.sum()) * np.asarray([[1], [0]]))
        assert_close(together[row, own], alone[0, : own.sum()], TOL.f32_forward)


def test_every_part_does_something(parts):
    graph, params = parts
    weight = np.random.default_rng(2).normal(size=(2, 16, 16)).astype(np.float32)
    tokens = np.random.default_rng(1).integers(0, 16, (2, 16))
    ids = np.repeat([[1, 2]], 8, axis=1) * np.ones((2, 1), int)
    grads = jax.jit(jax.grad(lambda p: (logits(graph, p, tokens, ids) * weight).sum()))(params)
    for path, leaf in jax.tree.leaves_with_path(grads):
        assert jnp.isfinite(leaf).all() and (leaf != 0).any(), jax.tree_util.keystr(path)


def test_nothing_beyond_the_learned_positions(parts):
    lm = nnx.merge(*parts)
    with pytest.raises(ValueError, match="tokens: expected at most the 10 learned positions, got 11"):
        lm(np.zeros((1, 11), np.int32))
    with pytest.raises(ValueError, match="max_length: expected at most the 10 learned positions, got 11"):
        lm.init_state(1, 11)
    with pytest.raises(ValueError, match="positions: expected those of the tokens"):
        lm.embed(np.zeros((1, 3), np.int32))
    beyond = jax.jit(lm.embed)(np.zeros((1, 2), np.int32), np.asarray([[9, 10]]))
    assert jnp.isfinite(beyond[0, 0]).all() and jnp.isnan(beyond[0, 1]).all()


def test_what_does_not_fit_is_said():
    x, at = np.ones((1, 3, 1, 8), np.float32), np.arange(3)[None]
    with pytest.raises(ValueError, match=r"rope_scaling.short_factor: expected 4 numbers, got 2"):
        rotate(x, at, scaling=LONG, reach=at + 1)
    with pytest.raises(ValueError, match="expected the reach"):
        rotate(x, at, scaling=DynamicScaling())
    with pytest.raises(ValueError, match="parallel_blocks: expected false beside deep_norm"):
        CONFIG.replace(deep_norm=True)


def test_yarn_in_numbers():
    """Of ten pairs at factor 4: the fast ones stay, the slow ones are four times slower, as the paper's ramp says."""
    scaling = YarnScaling(factor=4.0, original_length=64, beta_fast=8.0, beta_slow=0.5, truncate=False)
    plain = 100.0 ** (-np.arange(10) / 10)
    turns = 64 * plain / (2 * np.pi)
    ramp = np.clip(np.log(8.0 / turns) / np.log(8.0 / 0.5), 0, 1)
    np.testing.assert_allclose(scaling.frequencies(100.0, 20), plain * (1 - ramp + ramp / 4), rtol=1e-12)
    assert scaling.magnitude == pytest.approx(0.1 * np.log(4) + 1)
