"""RWKV-7: the authors' ``rwkv`` package on the CPU."""

from functools import partial

from effarch.mixers.rwkv7 import RWKV7
from effarch.mixers.rwkv_channel import RWKV7Channel
from tests.golden import rwkv
from tests.golden.rwkv import HEAD

config = rwkv.config(RWKV7(num_heads=HEAD[0], head_dim=HEAD[1], rank_w=4, rank_a=5, rank_v=6, rank_g=7), RWKV7Channel)
shapes, parameters = partial(rwkv.shapes, config), partial(rwkv.parameters, config)


def weight(name, x):
    """Decays from slow to fast."""
    return 10 * x - 8 if name.endswith("w0") else x


def independent(weights, tokens):
    return rwkv.logits(weights, tokens, goose=True)
