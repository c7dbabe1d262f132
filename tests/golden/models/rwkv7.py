"""RWKV-7: the authors' ``rwkv`` package on the CPU."""

from effarch.mixers.rwkv7 import RWKV7
from effarch.mixers.rwkv_channel import RWKV7Channel
from tests.golden import rwkv
from tests.golden.rwkv import DIM, HEAD, MIX

RANKS = {"w": 4, "a": 5, "v": 6, "g": 7}
FFN = {"mix.k": ("x_k", MIX)}

config = rwkv.config(
    RWKV7(num_heads=HEAD[0], head_dim=HEAD[1], **{f"rank_{name}": rank for name, rank in RANKS.items()}),
    RWKV7Channel(hidden=rwkv.HIDDEN),
)


def att(i):
    found = rwkv.squares(r="receptance", k="key", v="value", o="output")
    found |= {f"mix.{name}": (f"x_{name}", MIX) for name in "rwkvag"}
    found |= {"xi": ("k_k", MIX), "alpha": ("k_a", MIX), "bonus": ("r_k", HEAD)}
    for name, rank in RANKS.items():
        if name == "v" and i == 0:  # the first layer's value is the first value
            continue
        mine = "value" if name == "v" else name
        found[f"{mine}.inner.kernel"] = (f"{name}1", (DIM, rank))
        found[f"{mine}.outer.kernel"] = (f"{name}2", (rank, DIM))
        if name != "g":
            found[f"{mine}.bias"] = (f"{name}0", MIX)
    return found


def shapes():
    return rwkv.shapes(att, FFN)


def weight(name, x):
    """Decays from slow to fast."""
    return 10 * x - 8 if name.endswith("w0") else x


def independent(weights, tokens):
    return rwkv.logits(weights, tokens, goose=True)


def parameters(w):
    return rwkv.parameters(w, att, FFN)
