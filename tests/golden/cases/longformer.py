"""Longformer's self-attention: transformers, its sliding chunks; global tokens first, padding last.

Its layer is the attention without the output projection, and marks positions: 0 local, above 0 global, below padding.
Every head has dilation 1, the only one there.
"""

import numpy as np

from effarch.mixers.longformer_encoder import LongformerEncoder
from tests.golden import draw, mixer

DIM, HEADS, WIDTH, WINDOW, GLOBAL = 16, 2, 8, 8, 3
REAL = (draw.TIME, 29)  # tokens of each row; the others are padding
NAMES = ("query", "key", "value")


def inputs(rng):
    return {"x": rng.normal(size=(2, draw.TIME, DIM))}


def weights(rng):
    found = {}
    for name in (*NAMES, *(f"{name}_global" for name in NAMES)):
        found |= {f"{name}.weight": rng.normal(size=(DIM, DIM)) * DIM**-0.5, f"{name}.bias": rng.normal(size=DIM)}
    return found


def real():
    """Where there is a token."""
    return np.arange(draw.TIME)[None] < np.asarray(REAL)[:, None]


def independent(x, **weights):
    import torch
    from transformers import LongformerConfig
    from transformers.models.longformer.modeling_longformer import LongformerSelfAttention

    config = LongformerConfig(
        hidden_size=DIM, num_attention_heads=HEADS, attention_window=[WINDOW], attention_probs_dropout_prob=0.0
    )
    marks = torch.zeros(2, draw.TIME)
    marks[:, :GLOBAL] = 10000.0
    marks[~torch.tensor(real())] = -10000.0
    masks = {"is_index_masked": marks < 0, "is_index_global_attn": marks > 0, "is_global_attn": True}
    return {"o": mixer.torchs(LongformerSelfAttention(config, 0), weights, x, attention_mask=marks, **masks)[0]}


def ours(x, **weights):
    import jax.numpy as jnp

    given = {"qkv.o.kernel": jnp.eye(DIM).reshape(HEADS, WIDTH, DIM), "qkv.o.bias": jnp.zeros(DIM)}
    for mine, suffix in (("qkv", ""), ("far", "_global")):
        for name in NAMES:
            given[f"{mine}.{name[0]}.kernel"] = mixer.heads(weights[f"{name}{suffix}.weight"], HEADS, WIDTH)
            given[f"{mine}.{name[0]}.bias"] = weights[f"{name}{suffix}.bias"].reshape(HEADS, WIDTH)
    sizes = {"num_heads": HEADS, "num_kv_heads": HEADS, "head_dim": WIDTH}
    config = LongformerEncoder(**sizes, window=WINDOW, global_tokens=GLOBAL)
    return {"o": mixer.ours(config, DIM, x, given, jnp.asarray(real(), jnp.int32))}
