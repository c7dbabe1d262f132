"""RWKV-6: the authors' ``rwkv`` package on the CPU."""

from functools import partial

from effarch.mixers.rwkv6 import RWKV6
from effarch.mixers.rwkv_channel import RWKV6Channel
from tests.golden import rwkv
from tests.golden.rwkv import HEAD

config = rwkv.config(RWKV6(num_heads=HEAD[0], head_dim=HEAD[1], rank_mix=5, rank_w=6), RWKV6Channel)
shapes, parameters = partial(rwkv.shapes, config), partial(rwkv.parameters, config)


def weight(name, x):
    """Decays from slow to fast; low-rank maps that matter."""
    if name.endswith("time_decay"):
        return 3 * x - 3
    return 3 * x if name.endswith(("_w1", "_w2")) else x


def independent(weights, tokens):
    return rwkv.logits(weights, tokens, goose=False)
