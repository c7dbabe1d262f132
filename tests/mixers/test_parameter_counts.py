"""Models of the literature have as many parameters as their own code counts. Shapes only: nothing is computed."""

import math
from functools import partial

import jax
import pytest
from flax import nnx

import effarch.mixers  # noqa: F401  (registers)
from effarch.mixers.gla import GLA
from effarch.mixers.hgrn2 import HGRN2
from effarch.mixers.mamba2 import Mamba2
from effarch.mixers.mlstm import MLSTM
from effarch.mixers.retnet import RetNet
from effarch.mixers.swiglu import SwiGLU
from effarch.models.block import BlockConfig
from effarch.models.lm import LMConfig, make_lm


def parameters(mixer, dim, layers, *, hidden=None, vocab=32000, tied=False) -> int:
    """Of a language model of equal blocks; ``hidden``: width of the feed-forward layers, None: there are none."""
    block = BlockConfig(mixer=mixer, channel=None if hidden is None else SwiGLU(hidden=hidden))
    config = LMConfig(vocab_size=vocab, dim=dim, num_layers=layers, pattern=(block,), tie_embeddings=tied)
    params = nnx.split(jax.eval_shape(partial(make_lm, config)), nnx.Param, ...)[1]
    return sum(math.prod(x.shape) for x in jax.tree.leaves(params))


def wide(dim: int, ratio: int = 4) -> int:
    """Hidden width of flash-linear-attention's gated feed-forward layers."""
    return 256 * math.ceil(2 * ratio * dim / 3 / 256)


@pytest.mark.parametrize(
    ("dim", "mixer", "ratio", "expected"),
    [
        (1024, RetNet(num_heads=4, head_dim=256, value_head_dim=512), 2, 380_171_264),
        (2048, RetNet(num_heads=8, head_dim=256, value_head_dim=512), 2, 1_351_727_104),
        (1024, GLA(num_heads=4, head_dim=128, value_head_dim=256), 4, 374_475_776),
        (2048, GLA(num_heads=4, head_dim=256, value_head_dim=512), 4, 1_365_514_240),
        (1024, HGRN2(num_heads=8, head_dim=128, value_head_dim=128), 4, 373_916_672),
        (2048, HGRN2(num_heads=16, head_dim=128, value_head_dim=128), 4, 1_364_396_032),
    ],
    ids=lambda value: value.type_name if hasattr(value, "type_name") else str(value),
)
def test_models_of_flash_linear_attention(dim, mixer, ratio, expected):
    """Its 340M and 1.3B: 24 layers."""
    assert parameters(mixer, dim, 24, hidden=wide(dim, ratio)) == expected


@pytest.mark.parametrize(
    ("dim", "layers", "vocab", "tied", "expected"),
    [
        (768, 24, 50288, True, 128_989_632),
        (1024, 48, 50288, True, 368_346_624),
        (2048, 48, 32000, False, 1_371_839_488),
    ],
)
def test_mamba2(dim, layers, vocab, tied, expected):
    """130m, 370m, and 1.3B as flash-linear-attention has it."""
    mixer = Mamba2(num_heads=2 * dim // 64)
    assert parameters(mixer, dim, layers, vocab=vocab, tied=tied) == expected


def test_xlstm_7b():
    hidden = 64 * math.ceil(2.667 * 4096 / 64)
    assert parameters(MLSTM(), 4096, 32, hidden=hidden, vocab=50304) == 6_865_424_896
