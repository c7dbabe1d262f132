"""RWKV-5.2: the authors' ``rwkv`` package on the CPU."""

from effarch.mixers.rwkv5 import RWKV5
from effarch.mixers.rwkv_channel import RWKV5Channel
from tests.golden import rwkv
from tests.golden.rwkv import DIM, HEAD, MIX

config = rwkv.config(RWKV5(num_heads=HEAD[0], head_dim=HEAD[1]), RWKV5Channel(hidden=rwkv.HIDDEN))
FFN = {f"mix.{name}": (f"time_mix_{name}", MIX) for name in "rk"}
FFN["receptance.kernel"] = ("receptance.weight", (DIM, DIM))


def att(i):
    found = rwkv.squares(r="receptance", k="key", v="value", gate="gate", o="output")
    found |= {f"mix.{name}": (f"time_mix_{name}", MIX) for name in "rkvg"}
    return found | {"omega": ("time_decay", HEAD), "bonus": ("time_faaaa", HEAD)}


def shapes():
    return rwkv.shapes(att, FFN)


def weight(name, x):
    """Decays from slow to fast."""
    return 3 * x - 3 if name.endswith("time_decay") else x


def independent(weights, tokens):
    return rwkv.logits(weights, tokens, goose=False)


def parameters(w):
    return rwkv.parameters(w, att, FFN, complement="time_mix")
