"""RWKV-7: the authors' ``rwkv`` package on the CPU."""

from effarch.mixers.rwkv7 import RWKV7
from effarch.mixers.rwkv_channel import RWKV7Channel
from effarch.models.block import BlockConfig
from effarch.models.lm import LMConfig
from tests.golden.independent import rwkv_logits

VOCAB, DIM, LAYERS, HEADS, HIDDEN = 48, 32, 2, 4, 64
RANKS = {"w": 4, "a": 5, "v": 6, "g": 7}

config = LMConfig(
    vocab_size=VOCAB,
    dim=DIM,
    num_layers=LAYERS,
    pattern=(
        BlockConfig(
            mixer=RWKV7(
                num_heads=HEADS,
                head_dim=DIM // HEADS,
                rank_w=RANKS["w"],
                rank_a=RANKS["a"],
                rank_v=RANKS["v"],
                rank_g=RANKS["g"],
            ),
            channel=RWKV7Channel(hidden=HIDDEN),
        ),
    ),
    norm="layer",
    norm_eps=1e-5,
    embed_norm=True,
    tie_embeddings=False,
)


def shapes():
    """As the released files name them."""
    found = {"emb.weight": (VOCAB, DIM), "head.weight": (VOCAB, DIM)}
    norms = ["blocks.0.ln0", "ln_out"]
    for i in range(LAYERS):
        norms += [f"blocks.{i}.{name}" for name in ("ln1", "ln2", "att.ln_x")]
        att, ffn = f"blocks.{i}.att.", f"blocks.{i}.ffn."
        found |= {att + f"{name}.weight": (DIM, DIM) for name in ("receptance", "key", "value", "output")}
        found |= {att + f"x_{name}": (1, 1, DIM) for name in "rwkvag"}
        found |= {att + name: (1, 1, DIM) for name in ("k_k", "k_a")}
        found[att + "r_k"] = (HEADS, DIM // HEADS)
        for name in RANKS if i else "wag":  # the first layer's value is the first value
            found |= {att + f"{name}1": (DIM, RANKS[name]), att + f"{name}2": (RANKS[name], DIM)}
            if name != "g":
                found[att + f"{name}0"] = (1, 1, DIM)
        found |= {ffn + "x_k": (1, 1, DIM), ffn + "key.weight": (HIDDEN, DIM), ffn + "value.weight": (DIM, HIDDEN)}
    return found | {f"{norm}.{part}": (DIM,) for norm in norms for part in ("weight", "bias")}


def weight(name, x):
    """Decays from slow to fast."""
    return 10 * x - 8 if name.endswith("w0") else x


def independent(weights, tokens):
    return rwkv_logits(weights, tokens, goose=True)


def parameters(w):
    norms = {"embed_norm": "blocks.0.ln0", "norm": "ln_out"}
    found = {"embedding.table": w["emb.weight"], "unembed.kernel": w["head.weight"].T}
    for i in range(LAYERS):
        layer, mixer, channel = f"layers.{i}.", f"layers.{i}.mixer.", f"layers.{i}.channel."
        att, ffn = f"blocks.{i}.att.", f"blocks.{i}.ffn."
        norms |= {layer + "mixer_norm": f"blocks.{i}.ln1", layer + "channel_norm": f"blocks.{i}.ln2"}
        norms[mixer + "norm"] = att + "ln_x"
        for mine, theirs in (("r", "receptance"), ("k", "key"), ("v", "value"), ("o", "output")):
            found[mixer + f"{mine}.kernel"] = w[att + f"{theirs}.weight"].T
        found |= {mixer + f"mix.{name}": w[att + f"x_{name}"] for name in "rwkvag"}
        for mine, theirs in (("xi", "k_k"), ("alpha", "k_a"), ("bonus", "r_k")):
            found[mixer + mine] = w[att + theirs]
        for name in RANKS if i else "wag":
            mine = mixer + ("value" if name == "v" else name)
            found[f"{mine}.inner.kernel"] = w[att + f"{name}1"]
            found[f"{mine}.outer.kernel"] = w[att + f"{name}2"]
            if name != "g":
                found[f"{mine}.bias"] = w[att + f"{name}0"]
        found[channel + "mix.k"] = w[ffn + "x_k"]
        found[channel + "up.kernel"] = w[ffn + "key.weight"].T
        found[channel + "down.kernel"] = w[ffn + "value.weight"].T
    parts = ("weight", "bias")
    return found | {f"{mine}.{part}": w[f"{theirs}.{part}"] for mine, theirs in norms.items() for part in parts}
