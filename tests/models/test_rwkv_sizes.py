"""Parameters of the released RWKV models, counted without making them."""

import math
from functools import partial

import jax
import pytest

from effarch.mixers.rwkv4 import RWKV4
from effarch.mixers.rwkv7 import RWKV7
from effarch.mixers.rwkv_channel import RWKV4Channel, RWKV7Channel
from effarch.models.block import BlockConfig
from effarch.models.lm import LMConfig, make_lm

WORLD, PILE = 65536, 50304


def released(vocab, layers, dim, mixer, channel) -> LMConfig:
    return LMConfig(
        vocab_size=vocab,
        dim=dim,
        num_layers=layers,
        pattern=(BlockConfig(mixer=mixer.replace(num_heads=dim // 64), channel=channel(hidden=4 * dim)),),
        norm="layer",
        norm_eps=1e-5,
        embed_norm=True,
        tie_embeddings=False,
    )


def rwkv7(vocab, layers, dim, **ranks) -> LMConfig:
    return released(vocab, layers, dim, RWKV7(**ranks), RWKV7Channel)


SIZES = {
    "RWKV-7 World 0.1B": (rwkv7(WORLD, 12, 768), 191_034_624),
    "RWKV-7 World 0.4B": (rwkv7(WORLD, 24, 1024), 450_767_872),
    "RWKV-7 World 1.5B": (rwkv7(WORLD, 24, 2048, rank_w=96, rank_a=96, rank_v=64, rank_g=256), 1_527_404_544),
    "RWKV-7 Pile 168M": (rwkv7(PILE, 12, 768), 167_638_272),
    "RWKV-4 169M": (released(50277, 12, 768, RWKV4(), RWKV4Channel), 169_342_464),
}


@pytest.mark.parametrize("name", SIZES)
def test_sizes_are_those_of_the_released_models(name):
    config, size = SIZES[name]
    assert sum(math.prod(x.shape) for x in jax.tree.leaves(jax.eval_shape(partial(make_lm, config)))) == size
