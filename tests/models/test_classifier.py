"""The classifier of images and sequences."""

from functools import lru_cache, partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from effarch import registry
from effarch.config import UserError, load
from effarch.mixers.bidirectional import Bidirectional
from effarch.mixers.fnet import FNet
from effarch.models.block import BlockConfig
from effarch.models.classifier import ClassifierConfig, make_classifier
from effarch.models.inputs import Ids, Patches
from effarch.models.stack import Layout
from effarch.nn.patches import PatchEmbedding
from tests.models import tiny
from tests.tolerances import TOL, assert_close

B, T = 3, 12
MASK = np.asarray([[1] * 12, [1] * 7 + [0] * 5, [0] * 5 + [1] * 7], bool)


def inner(name: str) -> Bidirectional:
    return Bidirectional(inner=registry.get("mixer", name).tiny()[0])


def block(mixer, channel="gelu_mlp") -> BlockConfig:
    return BlockConfig(mixer=mixer, channel=None if channel is None else registry.get("channel", channel).tiny()[0])


def of_ids(*mixers, layers: int = 2, **options) -> ClassifierConfig:
    """A small classifier of token ids; a mixer is a name or a config."""
    mixers = [registry.get("mixer", mixer).tiny()[0] if isinstance(mixer, str) else mixer for mixer in mixers]
    pattern = tuple(block(mixer) for mixer in mixers)
    ids = Ids(vocab_size=tiny.VOCAB, length=T + 4)
    return ClassifierConfig(input=ids, classes=5, dim=tiny.DIM, num_layers=layers, pattern=pattern, **options)


@lru_cache
def noisy(config: ClassifierConfig):
    """Graph and parameters: initial values plus noise, for zeros would hide what stands behind them."""
    graph, params = nnx.split(jax.jit(partial(make_classifier, config), compiler_options=tiny.FAST)())
    rng = np.random.default_rng(1)
    return graph, jax.tree.map(lambda x: x + 0.15 * rng.normal(size=x.shape).astype(np.float32), params)


@partial(jax.jit, static_argnums=0, compiler_options=tiny.FAST)
def logits(graph, params, inputs, mask):
    return nnx.merge(graph, params)(inputs, mask=mask)


@pytest.mark.parametrize(
    ("options", "parameters"),
    [
        # MLP-Mixer-B/16, ResMLP-S12 and gMLP-S of ImageNet, as their authors and timm's tables have them
        ({"dim": 768, "num_layers": 12}, 59_880_472),
        (
            {
                "dim": 384,
                "num_layers": 12,
                "norm": "affine",
                "pattern": [{"mixer": "resmlp", "channel": {"type": "gelu_mlp", "hidden": 1536, "layer_scale": 0.1}}],
            },
            15_350_872,
        ),
        ({"dim": 256, "num_layers": 30, "pattern": [{"mixer": "gmlp", "channel": None}]}, 19_422_656),
    ],
    ids=["mlp_mixer", "resmlp", "gmlp"],
)
def test_sizes_of_published_models(options, parameters):
    model = jax.eval_shape(partial(make_classifier, ClassifierConfig(classes=1000, **options)))
    assert sum(x.size for x in jax.tree.leaves(model)) == parameters
    assert model.stack.layout == Layout(0, 1, options["num_layers"], 0)


def test_patches_are_rows_of_squares():
    images = np.random.default_rng(0).normal(size=(2, 6, 4, 3)).astype(np.float32)
    embedding = PatchEmbedding(2, 3, 8, rngs=nnx.Rngs(0))
    found = embedding(jnp.asarray(images), jnp.dtype("float32"))
    squares = [images[:, i : i + 2, j : j + 2].reshape(2, -1) for i in (0, 2, 4) for j in (0, 2)]
    expected = np.stack([square @ np.asarray(embedding.linear.kernel[...]) for square in squares], axis=1)
    assert_close(found, expected, TOL.f32_forward)
    assert Patches(height=6, width=4, channels=3, patch=2).tokens == found.shape[1] == 6
    with pytest.raises(ValueError, match=r"images: expected \[B, height, width, 3\] with sides that 2 divides, got"):
        embedding(jnp.zeros((2, 5, 4, 3)), jnp.dtype("float32"))


@pytest.mark.slow
def test_scanned_layers_are_unrolled_layers():
    """With values that cross layers, among layers of the same inner mixer only."""
    config = of_ids("rwkv7", inner("rwkv7"), inner("retnet"), layers=9)
    model = jax.jit(partial(make_classifier, config), compiler_options=tiny.FAST)()
    assert model.stack.layout == Layout(2, 3, 2, 1)
    layers = model.stack.layers()
    assert [layer.mixer.value is None for layer in layers[::3]] == [True, False, False]
    assert [layer.mixer.ahead.value is None for layer in layers[1::3]] == [True, False, False]

    @partial(jax.jit, compiler_options=tiny.FAST)
    def unrolled(model):
        model.stack = model.stack.relaid(Layout(9, 1, 0, 0))
        return model

    apart = unrolled(model)

    @partial(jax.jit, compiler_options=tiny.FAST)
    def hidden(model, tokens):
        return model.hidden(tokens, mask=jnp.asarray(MASK), form="recurrent").hidden  # compiles fast

    real = MASK[..., None].astype(np.float32)
    one, two = (hidden(model, tiny.tokens(B, T)) * real for model in (model, apart))
    assert_close(one, two, TOL.f32_forward)
    assert np.linalg.norm(one) > 1


@pytest.mark.parametrize(
    ("mixer", "pool"), [("retnet", "class_token"), (inner("retnet"), "mean")], ids=["causal", "both"]
)
def test_padding_changes_nothing(pool, mixer):
    """Left, right, or absent; positions count from the first token."""
    graph, params = noisy(of_ids(mixer, pool=pool, positions="learned"))
    tokens = tiny.tokens(B, T).at[2, 5:].set(tiny.tokens(B, T)[1, :7])
    found = logits(graph, params, tokens, jnp.asarray(MASK))
    assert found.shape == (B, 5)
    assert_close(found[2], found[1], TOL.f32_forward)
    other = logits(graph, params, jnp.where(jnp.asarray(MASK), tokens, 7), jnp.asarray(MASK))
    assert_close(other, found, TOL.f32_forward)
    short = logits(graph, params, tokens[1:2, :7], None)
    assert_close(short[0], found[1], TOL.f32_forward)
    assert np.linalg.norm(found[0] - found[1]) > 0.1 * np.linalg.norm(found[0])


@pytest.mark.parametrize("pool", ["mean", "class_token"])
def test_the_head_sees_every_token(pool):
    """Through causal mixers too: the class token comes last."""
    graph, params = noisy(of_ids("retnet", pool=pool))

    def first(x, params):
        model = nnx.merge(graph, params)
        model.embedding = lambda inputs, dtype: inputs
        return model(x, mask=jnp.asarray(MASK))[:, 0].sum()

    x = jnp.asarray(np.random.default_rng(0).normal(size=(B, T, tiny.DIM)), jnp.float32)
    moved = np.abs(np.asarray(jax.jit(jax.grad(first), compiler_options=tiny.FAST)(x, params))).max(axis=-1)
    assert ((moved > 0) == MASK).all()


@pytest.mark.parametrize("positions", ["none", "learned"])
def test_the_stream_from_end_to_end(positions):
    """Embedding, positions, blocks, the last norm, the mean and the head, put together by hand."""
    config = of_ids("fnet", positions=positions).replace(pattern=(block(FNet(), None),))
    graph, params = noisy(config)
    model, tokens = nnx.merge(graph, params), tiny.tokens(B, T)
    x = model.embedding(tokens, jnp.dtype("float32"))
    if positions == "learned":
        assert model.positions.shape == (T + 4, tiny.DIM)
        x = x + model.positions[:T][None]
    for layer in model.stack.layers():
        x = x + jnp.fft.fft2(layer.mixer_norm(x), axes=(1, 2)).real
    assert_close(logits(graph, params, tokens, None), model.head(model.norm(x).mean(axis=1)), TOL.f32_forward)


def test_dtypes():
    config = of_ids(inner("retnet"), positions="learned", pool="class_token")
    low = config.replace(dtype="bfloat16", param_dtype="bfloat16")
    made = jax.eval_shape(partial(make_classifier, low))
    assert {x.dtype for x in jax.tree.leaves(made)} == {jnp.dtype("bfloat16")}
    graph, params = noisy(config)
    rounded = jax.tree.map(lambda x: x.astype(jnp.bfloat16), params)
    found = logits(nnx.split(made)[0], rounded, tiny.tokens(B, T), jnp.asarray(MASK))
    assert found.dtype == jnp.bfloat16
    exact = jax.tree.map(lambda x: x.astype(jnp.float32), rounded)
    assert_close(found.astype(jnp.float32), logits(graph, exact, tiny.tokens(B, T), jnp.asarray(MASK)), TOL.bf16)


def test_every_class_is_as_likely_at_first():
    model = jax.jit(partial(make_classifier, of_ids("retnet")), compiler_options=tiny.FAST)()
    assert (model(tiny.tokens(B, T)) == 0).all()


def test_errors():
    for words, message in (
        (["pattern=[{mixer: {type: mlp_mixer, length: 9}}]"], r"pattern: expected length 196 .* in mlp_mixer, got 9"),
        (["pool=class_token"], r"pattern: expected length 197 \(tokens of a row\) in mlp_mixer, got 196"),
        (["input={type: patches, height: 9, patch: 2}"], "input.patch: expected a divisor of 9 and 224, got 2"),
        (["input=pixels"], r'input: unknown input "pixels" \(known: ids, patches\)'),
    ):
        with pytest.raises(UserError, match=message):
            load(ClassifierConfig, None, words)
    model = jax.jit(partial(make_classifier, of_ids("retnet")), compiler_options=tiny.FAST)()
    with pytest.raises(ValueError, match="inputs: expected at most 16 tokens a row, got 17"):
        model(tiny.tokens(1, 17))
