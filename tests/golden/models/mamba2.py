"""Mamba-2: transformers, its torch path, two groups, chunks of 16."""

import numpy as np

from effarch.mixers.mamba2 import Mamba2
from effarch.models.block import BlockConfig
from effarch.models.lm import LMConfig
from tests.golden import decoders

D, H, P, N, G, LAYERS = 16, 4, 8, 6, 2, 2
PARTS = {"z": H * P, "x": H * P, "b": G * N, "c": G * N, "dt": H}  # of in_proj, in its order

config = LMConfig(
    vocab_size=48,
    dim=D,
    num_layers=LAYERS,
    pattern=(BlockConfig(mixer=Mamba2(num_heads=H, head_dim=P, state_dim=N, num_groups=G), channel=None),),
    norm_eps=1e-5,
    residual_float32=True,
)


def theirs():
    from transformers import Mamba2Config

    return Mamba2Config(
        vocab_size=48,
        hidden_size=D,
        num_hidden_layers=LAYERS,
        num_heads=H,
        head_dim=P,
        state_size=N,
        n_groups=G,
        chunk_size=16,
        tie_word_embeddings=True,
    )


def shapes():
    return decoders.shapes(theirs())


def weight(name, x):
    """Decays from slow to fast."""
    return 6 * x - 5 if name.endswith("A_log") else x


def independent(weights, tokens):
    return decoders.logits(theirs(), weights, tokens)


def parameters(w):
    found = {"embedding.table": w["backbone.embeddings.weight"], "norm.weight": w["backbone.norm_f.weight"]}
    for i in range(LAYERS):
        ours, source = f"layers.{i}.mixer", f"backbone.layers.{i}.mixer"
        found[f"layers.{i}.mixer_norm.weight"] = w[f"backbone.layers.{i}.norm.weight"]
        kernels = np.split(w[f"{source}.in_proj.weight"].T, np.cumsum([*PARTS.values()])[:-1], axis=-1)
        found |= {f"{ours}.{name}.kernel": x for name, x in zip(PARTS, kernels, strict=True)}
        others = {"dt_bias": "dt_bias", "log_rate": "A_log", "skip": "D", "conv.bias": "conv1d.bias"}
        others |= {"norm.weight": "norm.weight"}
        found |= decoders.moved(w, ours, source, {"o": "out_proj"}, others)
        found[f"{ours}.conv.weight"] = w[f"{source}.conv1d.weight"][:, 0].T
    return found
