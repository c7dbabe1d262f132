"""RWKV-6: the authors' ``rwkv`` package on the CPU."""

from effarch.mixers.rwkv6 import RWKV6
from effarch.mixers.rwkv_channel import RWKV6Channel
from tests.golden import rwkv
from tests.golden.rwkv import DIM, HEAD, MIX

RANK_MIX, RANK_W = 5, 6
FFN = {f"mix.{name}": (f"time_maa_{name}", MIX) for name in "rk"}
FFN["receptance.kernel"] = ("receptance.weight", (DIM, DIM))

config = rwkv.config(
    RWKV6(num_heads=HEAD[0], head_dim=HEAD[1], rank_mix=RANK_MIX, rank_w=RANK_W), RWKV6Channel(hidden=rwkv.HIDDEN)
)


def att(i):
    found = rwkv.squares(r="receptance", k="key", v="value", gate="gate", o="output")
    found |= {f"mix.{name}": (f"time_maa_{name}", MIX) for name in "wkvrg"}
    found |= {"mix.base": ("time_maa_x", MIX), "mix.inner.kernel": ("time_maa_w1", (DIM, 5 * RANK_MIX))}
    found["mix.outer"] = ("time_maa_w2", (5, RANK_MIX, DIM))  # both in the order w, k, v, r, g
    found |= {"w.bias": ("time_decay", MIX), "w.inner.kernel": ("time_decay_w1", (DIM, RANK_W))}
    return found | {"w.outer.kernel": ("time_decay_w2", (RANK_W, DIM)), "bonus": ("time_faaaa", HEAD)}


def shapes():
    return rwkv.shapes(att, FFN)


def weight(name, x):
    """Decays from slow to fast; low-rank maps that matter."""
    if name.endswith("time_decay"):
        return 3 * x - 3
    return 3 * x if name.endswith(("_w1", "_w2")) else x


def independent(weights, tokens):
    return rwkv.logits(weights, tokens, goose=False)


def parameters(w):
    return rwkv.parameters(w, att, FFN)
