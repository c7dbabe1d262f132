"""Models so small that compiling them is all they cost, their parameters drawn at random."""

from functools import lru_cache, partial

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

import effarch.mixers  # noqa: F401  (registers)
from effarch import registry
from effarch.models.block import BlockConfig
from effarch.models.lm import LM, LMConfig, make_lm

DIM, VOCAB = 32, 61  # DIM: of the mixers these tests name
FAST = {"xla_backend_optimization_level": 0}  # compiling is what these tests spend their time on
CHANNELS = {"rwkv7": "rwkv7_channel"}  # the others: SwiGLU


def block(name: str) -> BlockConfig:
    """A block of a registered mixer, tiny."""
    channel, _ = registry.get("channel", CHANNELS.get(name, "swiglu")).tiny()
    return BlockConfig(mixer=registry.get("mixer", name).tiny()[0], channel=channel)


def config(*names: str, layers: int, **changes) -> LMConfig:
    """A model whose layers repeat the named mixers, which are of one width."""
    (dim,) = {registry.get("mixer", name).tiny()[1] for name in names}
    pattern = tuple(block(name) for name in names)
    return LMConfig(vocab_size=VOCAB, dim=dim, num_layers=layers, pattern=pattern, **changes)


def initialised(config: LMConfig) -> LM:
    """``make_lm``, compiled."""
    return jax.jit(partial(make_lm, config), compiler_options=FAST)()


@lru_cache
def split(config: LMConfig):
    """Graph and variables of a model: parameters plus noise, for zeros would hide what stands behind them."""
    graph, params, fixed = nnx.split(initialised(config), nnx.Param, ...)
    rng = np.random.default_rng(1)

    def noisy(x):
        return jnp.asarray(np.asarray(x) + 0.15 * rng.normal(size=x.shape), x.dtype)

    return graph, nnx.merge_state(jax.tree.map(noisy, params), fixed)


def model(config: LMConfig) -> LM:
    """The model of :func:`split`."""
    graph, params = split(config)
    return nnx.merge(graph, jax.tree.map(lambda x: x, params))  # variables of its own


def tokens(batch: int, time: int, seed: int = 0):
    """Random ids."""
    return jnp.asarray(np.random.default_rng(seed).integers(0, VOCAB, (batch, time)), jnp.int32)


@partial(jax.jit, static_argnums=(0, 1, 2), compiler_options=FAST)
def hidden(graph, form, taps, params, tokens, state, segment_ids):
    """``LM.hidden``, compiled."""
    return nnx.merge(graph, params).hidden(tokens, state, segment_ids=segment_ids, form=form, taps=taps)


def unstack(lm: LM) -> LM:
    """``LM.unstacked``, compiled."""
    return jax.jit(lambda lm: lm.unstacked(), compiler_options=FAST)(lm)


def same_bits(actual, expected) -> bool:
    """Whether two trees of arrays are equal to the bit."""
    pairs = zip(jax.tree.leaves(actual), jax.tree.leaves(expected), strict=True)
    return all(x.dtype == y.dtype and np.asarray(x).tobytes() == np.asarray(y).tobytes() for x, y in pairs)
