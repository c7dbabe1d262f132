"""RWKV-5.2: the authors' ``rwkv`` package on the CPU."""

from functools import partial

from effarch.mixers.rwkv5 import RWKV5
from effarch.mixers.rwkv_channel import RWKV5Channel
from tests.golden import rwkv
from tests.golden.rwkv import HEAD

config = rwkv.config(RWKV5(num_heads=HEAD[0], head_dim=HEAD[1]), RWKV5Channel)
shapes, parameters = partial(rwkv.shapes, config), partial(rwkv.parameters, config)


def weight(name, x):
    """Decays from slow to fast."""
    return 3 * x - 3 if name.endswith("time_decay") else x


def independent(weights, tokens):
    return rwkv.logits(weights, tokens, goose=False)
