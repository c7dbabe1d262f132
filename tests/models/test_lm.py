"""The decoder language model, with every registered mixer and with hybrids.

What all share is compiled for a few of them by default, one of every kind of state and layout, and for all in `slow`.
"""

import math
from functools import lru_cache, partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from effarch import registry
from effarch.models.block import TAPS
from effarch.models.lm import LM, LMConfig, make_lm
from effarch.models.stack import Layout
from tests.conformance.test_mixers import same_trees
from tests.models import tiny
from tests.tolerances import TOL, assert_close

B, T, PREFILL = 4, 40, 32
#: Left padding; a document that ends while decoding; a short prompt; a document that ends in the prompt, then padding.
IDS = jnp.asarray(
    [[0] * 5 + [7] * 35, [3] * 34 + [4] * 6, [2] * 19 + [0] * 13 + [2] * 8, [1] * 6 + [5] * 28 + [0] * 2 + [5] * 4]
)
CORE = ("rwkv7", "hybrid")
MODELS = [
    pytest.param(name, id=name, marks=[pytest.mark.xdist_group(name), *([] if name in CORE else [pytest.mark.slow])])
    for name in (*registry.names("mixer"), "hybrid")
]
FIRST_DIFFERS = ("rwkv7", "hgrn", "hgrn2")
LAYOUTS = dict.fromkeys(FIRST_DIFFERS, Layout(1, 1, 2, 0)) | {"hybrid": Layout(0, 2, 2, 1)}


@lru_cache
def config_of(name: str) -> LMConfig:
    """Three layers of a mixer, or two mixers in turn with a remainder."""
    if name == "hybrid":
        pattern = [tiny.block(name).replace(channel=None) for name in ("gated_deltanet", "softmax_attention")]
        return tiny.config("gated_deltanet", layers=5).replace(pattern=pattern)
    if not registry.get("mixer", name).causal:
        pytest.skip(f"{name}: causal is False")
    return tiny.config(name, layers=3)


@partial(jax.jit, static_argnums=(0, 1), compiler_options=tiny.FAST)
def gradients(graph, apart, params, tokens, segment_ids):
    """Hidden states, and the gradient of a random functional of them and of the logits."""

    params, fixed = nnx.split_state(params, nnx.Param, ...)

    def loss(params):
        lm: LM = nnx.merge(graph, params, fixed)
        hidden = (lm.unstacked() if apart else lm).hidden(tokens, segment_ids=segment_ids).hidden
        weight = jax.random.normal(jax.random.key(5), (*tokens.shape, lm.config.vocab_size))
        return (lm.head(hidden) * weight * (segment_ids > 0).astype(jnp.float32)[..., None]).sum(), hidden

    return jax.value_and_grad(loss, has_aux=True)(params)


@lru_cache
def scanned(name: str):
    return gradients(tiny.split(config_of(name))[0], False, tiny.split(config_of(name))[1], tiny.tokens(B, T), IDS)


def real(x):
    return np.asarray(x) * np.asarray(IDS > 0)[..., None]


@pytest.mark.parametrize("name", MODELS)
def test_scanned_layers_are_unrolled_layers(name):
    """Values and gradients; each stack scans what it can."""
    config = config_of(name)
    graph, params = tiny.split(config)
    assert tiny.model(config).stack.layout == LAYOUTS.get(name, Layout(0, 1, 3, 0))
    (_, hidden), grads = scanned(name)
    (_, apart), apart_grads = gradients(graph, True, params, tiny.tokens(B, T), IDS)
    assert_close(real(hidden), real(apart), TOL.f32_forward)
    same_trees(grads, apart_grads, TOL.f32_grad)


@pytest.mark.parametrize("name", MODELS)
def test_prefill_and_decoding_are_the_whole(name):
    """Rows of different lengths, padding left and right and between, documents that end before and while decoding."""
    config = config_of(name)
    graph, params = nnx.split(tiny.unstack(tiny.model(config)))
    lm = nnx.merge(graph, params)
    (_, whole), _ = scanned(name)
    ids = tiny.tokens(B, T)
    output = tiny.hidden(graph, "chunkwise", (), params, ids[:, :PREFILL], lm.init_state(B, T), IDS[:, :PREFILL])
    pieces = [output.hidden]
    assert output.state.progress.length.tolist() == [27, 32, 19, 26]
    for t in range(PREFILL, T):
        at = slice(t, t + 1)
        output = tiny.hidden(graph, "recurrent", (), params, ids[:, at], output.state, IDS[:, at])
        pieces.append(output.hidden)
    assert_close(real(jnp.concatenate(pieces, axis=1)), real(whole), TOL.f32_forward)
    assert output.state.progress.length.tolist() == [35, 6, 27, 32]
    assert output.state.progress.last_segment.tolist() == [7, 4, 2, 5]


@pytest.mark.parametrize("name", MODELS)
def test_bytes_and_operations(name):
    config = config_of(name)
    for time in (16, 512):
        state = jax.eval_shape(lambda time=time: make_lm(config).init_state(1, time))
        held = sum(math.prod(x.shape) * x.dtype.itemsize for x in jax.tree.leaves(state.layers))
        assert config.state_bytes(time) == held
    assert config.flops(512) > 2 * config.flops(256) - 1 > 0


@pytest.mark.parametrize("name", MODELS)
def test_initialisation_does_not_depend_on_how_layers_are_held(name):
    config = config_of(name)
    together = nnx.split(tiny.unstack(tiny.initialised(config)))[1]
    apart = nnx.split(tiny.initialised(config.replace(scan_layers=False)))[1]
    assert jax.tree.structure(together) == jax.tree.structure(apart)
    for (path, x), y in zip(jax.tree.leaves_with_path(together), jax.tree.leaves(apart), strict=True):
        assert_close(x, y, TOL.f32_forward, jax.tree_util.keystr(path))
    one, two = (jax.tree.leaves(together["stack"]["prefix"][i]["mixer"]) for i in (1, 2))
    if name != "hybrid":
        assert any((x != y).any() for x, y in zip(one, two, strict=True))


def test_values_that_cross_layers_begin_where_their_mixer_does():
    """RWKV-7 below which another mixer stands: its first layer is not the model's."""
    config = tiny.config("retnet", "rwkv7", layers=6)
    graph, params = tiny.split(config)
    lm = nnx.merge(graph, params)
    assert lm.stack.layout == Layout(2, 2, 2, 0)
    assert [layer.mixer.value is None for layer in lm.stack.layers()[1::2]] == [True, False, False]
    output = tiny.hidden(graph, "chunkwise", (), params, tiny.tokens(B, T), None, IDS)
    assert jnp.isfinite(output.hidden).all()


def test_taps_have_an_order_and_a_shape():
    """``[L, B, T, D]`` by layer, over prefix and scan and with a state; each tap is what it is called."""
    config = config_of("softmax_attention").replace(
        pattern=[tiny.block(name) for name in ("retnet", "softmax_attention", "softmax_attention")]
    )
    graph, params = tiny.split(config)
    lm, ids = tiny.model(config), tiny.tokens(B, T)
    assert lm.stack.layout == Layout(1, 1, 2, 0)
    output = tiny.hidden(graph, "chunkwise", TAPS, params, ids, None, IDS)
    assert {name: x.shape for name, x in output.taps.items()} == {name: (3, B, T, tiny.DIM) for name in TAPS}
    taps = {name: real(x) for name, x in output.taps.items()}
    assert_close(taps["block_in"][0], real(lm.embed(ids)), TOL.f32_forward)
    assert_close(taps["block_in"][1:], taps["block_out"][:-1], TOL.f32_forward)
    assert_close(real(lm.norm(output.taps["block_out"][-1])), real(output.hidden), TOL.f32_forward)
    for i, layer in enumerate(lm.stack.layers()):
        assert_close(taps["mixer_in"][i], real(layer.mixer_norm(output.taps["block_in"][i])), TOL.f32_forward)
        between = output.taps["block_in"][i] + output.taps["mixer_out"][i]
        after = between + layer.channel(layer.channel_norm(between), None, None)[0]
        assert_close(taps["block_out"][i], real(after), TOL.f32_forward)
    carried = tiny.hidden(graph, "chunkwise", ("mixer_out",), params, ids, lm.init_state(B, T), IDS)
    assert list(carried.taps) == ["mixer_out"]
    assert_close(real(carried.taps["mixer_out"]), taps["mixer_out"], TOL.f32_forward)


@lru_cache
def temporaries(remat: str) -> int:
    """Bytes that a gradient holds in a deep model."""
    graph, params = tiny.split(tiny.config("retnet", layers=8, remat=remat))
    compiled = gradients.lower(graph, False, params, tiny.tokens(B, 256), jnp.ones((B, 256), jnp.int32)).compile()
    return compiled.memory_analysis().temp_size_in_bytes


@pytest.mark.parametrize("remat", ["full", pytest.param("dots", marks=pytest.mark.slow)])
def test_remat_saves_memory_and_changes_no_gradient(remat):
    graph = nnx.split(jax.eval_shape(partial(make_lm, config_of("retnet").replace(remat=remat))))[0]
    (_, hidden), grads = gradients(graph, False, tiny.split(config_of("retnet"))[1], tiny.tokens(B, T), IDS)
    (_, expected), expected_grads = scanned("retnet")
    assert_close(hidden, expected, TOL.f32_forward)
    same_trees(grads, expected_grads, TOL.f32_grad)
    assert temporaries(remat) < 0.8 * temporaries("none")


def test_a_value_that_crosses_layers_is_kept_once():
    """RWKV-7's first value goes to every layer as it is: per scanned layer only the stream is kept."""
    config = tiny.config("rwkv7", layers=5, remat="full")
    mixer = config.block(0).mixer

    graph, params = tiny.split(config)

    def kept(params):
        return jax.vjp(lambda params: nnx.merge(graph, params).hidden(tiny.tokens(B, T)).hidden.sum(), params)[1]

    shapes = [x.shape for x in jax.tree.leaves(jax.eval_shape(kept, params))]
    assert shapes.count((4, B, T, config.dim)) == 1
    assert (4, B, T, mixer.num_heads, mixer.head_dim) not in shapes
    assert (B, T, mixer.num_heads, mixer.head_dim) in shapes


def test_dtypes():
    """bf16 activations over float32 parameters, and over bf16 parameters, stay close to float32."""
    config = tiny.config("retnet", "softmax_attention", layers=2)
    graph, params = nnx.split(tiny.initialised(config))

    def hidden(graph, params):
        return tiny.hidden(graph, "chunkwise", (), params, tiny.tokens(B, T), None, IDS).hidden

    for param_dtype in ("float32", "bfloat16"):
        low = config.replace(dtype="bfloat16", param_dtype=param_dtype)
        made = jax.eval_shape(partial(make_lm, low))
        assert {x.dtype for x in jax.tree.leaves(made)} == {jnp.dtype(param_dtype)}
        params = jax.tree.map(lambda x, dtype=param_dtype: x.astype(dtype), params)
        found = hidden(nnx.split(made)[0], params)
        assert found.dtype == jnp.bfloat16
        expected = hidden(graph, jax.tree.map(lambda x: x.astype(jnp.float32), params))
        assert_close(real(found.astype(jnp.float32)), real(expected), TOL.bf16)


def test_heads():
    """Tied: the embedding's table; untied: a parameter of its own; a cap bounds the logits."""
    tied = tiny.model(tiny.config("retnet", layers=1))
    x = 10 * jax.random.normal(jax.random.key(0), (2, tiny.DIM))
    assert tied.unembed is None
    assert_close(tied.head(x), x @ tied.embedding.table[...].T, TOL.f32_forward)
    untied = tiny.model(tiny.config("retnet", layers=1, tie_embeddings=False))
    assert untied.unembed.kernel.shape == (tiny.DIM, tiny.VOCAB)
    assert untied.unembed.kernel.get_metadata()["axes"] == ("embed", "vocab")
    assert_close(untied.head(x), x @ untied.unembed.kernel[...], TOL.f32_forward)
    capped = tiny.model(tiny.config("retnet", layers=1, logit_cap=3.0))
    assert_close(capped.head(x), 3 * np.tanh(np.asarray(tied.head(x)) / 3), TOL.f32_forward)
    logits, state = untied(tiny.tokens(1, 4))
    assert logits.shape == (1, 4, tiny.VOCAB) and state is None


def test_options_of_the_stream():
    """A norm after the embedding, LayerNorms, no channel mixer."""
    block = tiny.block("retnet").replace(channel=None)
    config = tiny.config("retnet", layers=2, embed_norm=True, norm="layer").replace(pattern=(block,))
    graph, params = tiny.split(config)
    lm = nnx.merge(graph, params)
    x = lm.embed(tiny.tokens(1, 5))
    assert_close(x, lm.embed_norm(lm.embedding(tiny.tokens(1, 5), jnp.dtype("float32"))), TOL.f32_forward)
    assert all(layer.channel is None and layer.channel_norm is None for layer in lm.stack.layers())
    assert jnp.isfinite(lm.hidden(tiny.tokens(1, 5)).hidden).all()


def test_errors():
    lm = tiny.model(tiny.config("retnet", layers=1))
    with pytest.raises(ValueError, match=r"tokens: expected shape \[B, T\], got \[5\]"):
        lm.hidden(jnp.zeros((5,), jnp.int32))
    with pytest.raises(ValueError, match="taps: expected names of mixer_in, mixer_out, .*, got 'logits'"):
        lm.hidden(tiny.tokens(1, 4), taps=("mixer_in", "logits"))
    with pytest.raises(ValueError, match="form: expected one of parallel, chunkwise, recurrent, got 'chunk'"):
        lm.hidden(tiny.tokens(1, 4), form="chunk")
    with pytest.raises(ValueError, match=r"segment_ids: expected shape \[1, 4\], got \[1, 3\]"):
        lm.hidden(tiny.tokens(1, 4), segment_ids=jnp.ones((1, 3), jnp.int32))
