"""Mamba: transformers, its torch path."""

import numpy as np

from effarch.mixers.mamba1 import Mamba1
from effarch.models.block import BlockConfig
from effarch.models.lm import LMConfig
from tests.golden import decoders

D, N, RANK, LAYERS = 16, 4, 3, 2

config = LMConfig(
    vocab_size=48,
    dim=D,
    num_layers=LAYERS,
    pattern=(BlockConfig(mixer=Mamba1(state_size=N, rank=RANK), channel=None),),
    norm_eps=1e-5,
    residual_float32=True,
)


def theirs():
    from transformers import MambaConfig

    return MambaConfig(
        vocab_size=48, hidden_size=D, state_size=N, time_step_rank=RANK, expand=2, num_hidden_layers=LAYERS
    )


def shapes():
    return decoders.shapes(theirs())


def weight(name, x):
    """Decays from slow to fast."""
    return 2 * x - 1 if name.endswith("A_log") else x


def independent(weights, tokens):
    return decoders.logits(theirs(), weights, tokens)


def parameters(w):
    found = {"embedding.table": w["backbone.embeddings.weight"], "norm.weight": w["backbone.norm_f.weight"]}
    for i in range(LAYERS):
        ours, source = f"layers.{i}.mixer", f"backbone.layers.{i}.mixer"
        found[f"layers.{i}.mixer_norm.weight"] = w[f"backbone.layers.{i}.norm.weight"]
        parts = dict(zip(("x", "z"), np.split(w[f"{source}.in_proj.weight"].T, 2, axis=-1), strict=True))
        kernel = w[f"{source}.x_proj.weight"].T
        parts |= zip(("dt.inner", "b", "c"), np.split(kernel, [RANK, RANK + N], axis=-1), strict=True)
        parts["dt.outer"] = w[f"{source}.dt_proj.weight"].T
        found |= {f"{ours}.{name}.kernel": x for name, x in parts.items()}
        others = {"conv.bias": "conv1d.bias", "dt.bias": "dt_proj.bias", "log_rate": "A_log", "skip": "D"}
        found |= decoders.moved(w, ours, source, {"o": "out_proj"}, others)
        found[f"{ours}.conv.weight"] = w[f"{source}.conv1d.weight"][:, 0].T
    return found
