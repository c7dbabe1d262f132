"""Options of the residual stream: scale of embeddings, kinds of norms, what outputs are added to."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from effarch.models.lm import LMConfig, make_lm
from tests.models import tiny
from tests.tolerances import TOL, assert_close

T = 12
IDS = jnp.ones((2, T), jnp.int32)
TAPS = ("mixer_in", "mixer_out", "block_in", "block_out")


def run(config: LMConfig, params, taps=()):
    graph = nnx.split(jax.eval_shape(lambda: make_lm(config)))[0]
    return tiny.hidden(graph, "chunkwise", taps, params, tiny.tokens(2, T), None, IDS)


def test_embeddings_are_scaled_by_the_root_of_the_width_in_bfloat16():
    """sqrt(32) = 5.6569 is 5.65625 in bfloat16, and nothing else is rounded."""
    lm = tiny.model(tiny.config("retnet", layers=1, embed_scale=True))
    rows = lm.embedding.table[...][tiny.tokens(2, T)]
    assert (lm.embed(tiny.tokens(2, T)) == rows * 5.65625).all()
    low = nnx.merge(*nnx.split(lm))
    low.config = lm.config.replace(dtype="bfloat16")
    assert (low.embed(tiny.tokens(2, T)) == rows.astype(jnp.bfloat16) * jnp.bfloat16(5.65625)).all()


@pytest.mark.parametrize("channel", [True, False])
def test_deep_norm_adds_to_the_scaled_normalised_input(channel):
    config = tiny.config("retnet", layers=3, deep_norm=True)
    if not channel:
        config = config.replace(pattern=[config.pattern[0].replace(channel=None)])
    assert config.residual_scale == 6**0.25
    lm = tiny.model(config)
    taps = run(config, tiny.split(config)[1], TAPS).taps
    for i, layer in enumerate(lm.stack.layers()):
        x = np.float32(6**0.25) * np.asarray(taps["mixer_in"][i]) + np.asarray(taps["mixer_out"][i])
        if channel:
            normalised = layer.channel_norm(jnp.asarray(x))
            x = np.float32(6**0.25) * np.asarray(normalised) + np.asarray(layer.channel(normalised, None, None)[0])
        assert_close(taps["block_out"][i], x, TOL.f32_forward)
        assert_close(taps["mixer_in"][i], layer.mixer_norm(taps["block_in"][i]), TOL.f32_forward)


def test_all_norms_multiply_by_one_plus_their_weight():
    """A model of plain norms whose weights are larger by 1 is the same model."""
    config = tiny.config("retnet", layers=2, embed_norm=True)
    _, params = tiny.split(config)
    expected = run(config, params).hidden
    names = ("mixer_norm", "channel_norm", "embed_norm", "norm")
    shifted = []

    def shift(path, x):
        keys = [str(getattr(key, "key", getattr(key, "name", ""))) for key in path if not hasattr(key, "idx")]
        if any(name in keys for name in names) and "mixer" not in keys:
            shifted.append(keys)
            return x - 1
        return x

    less = jax.tree.map_with_path(shift, params)
    assert len(shifted) == 4  # of both layers together, after the embedding, the last
    assert_close(run(config.replace(norm="rms_plus_one"), less).hidden, expected, TOL.f32_forward)
    fresh = tiny.initialised(config.replace(norm="rms_plus_one"))
    assert (fresh.norm.weight[...] == 0).all() and (fresh.embed_norm.weight[...] == 0).all()


@pytest.mark.parametrize("deep_norm", [False, True])
def test_the_stream_can_be_wider_than_what_mixers_read(deep_norm):
    """With mixers in bfloat16 the sum over layers loses nothing; in float32 nothing changes."""
    config = tiny.config("retnet", layers=3, deep_norm=deep_norm, residual_float32=True)
    config = config.replace(pattern=[config.pattern[0].replace(channel=None)])
    _, params = tiny.split(config)
    exact = run(config, params).hidden
    assert (exact == run(config.replace(residual_float32=False), params).hidden).all()
    low = config.replace(dtype="bfloat16")
    shown = run(low, params, TAPS)
    taps = {name: x.dtype for name, x in shown.taps.items()}
    wide = jnp.dtype("float32")
    assert shown.hidden.dtype == jnp.bfloat16 and taps["block_in"] == taps["block_out"] == wide
    assert taps["mixer_in"] == taps["mixer_out"] == jnp.bfloat16
    lm = nnx.merge(nnx.split(jax.eval_shape(lambda: make_lm(low)))[0], params)
    for i, layer in enumerate(lm.stack.layers()):
        x = shown.taps["block_in"][i]
        residual = layer.mixer_norm(x) * jnp.float32(6**0.25) if deep_norm else x
        assert_close(shown.taps["block_out"][i] - residual, shown.taps["mixer_out"][i].astype(wide), TOL.f32_forward)
    state = lm.hidden(tiny.tokens(2, T), lm.init_state(2, T)).hidden
    assert_close(state.astype(wide), shown.hidden.astype(wide), TOL.bf16)
