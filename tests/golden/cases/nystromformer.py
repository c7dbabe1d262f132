"""Nystromformer's self-attention: transformers, each matrix scaled by itself before it is inverted, as ours."""

from effarch.mixers.nystromformer import Nystromformer
from tests.golden import draw, mixer

DIM, HEADS, WIDTH, LANDMARKS, TAPS = 16, 2, 8, 8, 5


def inputs(rng):
    return {"x": rng.normal(size=(2, draw.TIME, DIM))}


def weights(rng):
    found = {}
    for name in ("query", "key", "value"):
        found |= {f"{name}.weight": rng.normal(size=(DIM, DIM)) * DIM**-0.5, f"{name}.bias": rng.normal(size=DIM)}
    return {**found, "conv.weight": rng.normal(size=(HEADS, 1, TAPS, 1)) * TAPS**-0.5}


def independent(x, **weights):
    from transformers import NystromformerConfig
    from transformers.models.nystromformer.modeling_nystromformer import NystromformerSelfAttention

    config = NystromformerConfig(
        hidden_size=DIM,
        num_attention_heads=HEADS,
        num_landmarks=LANDMARKS,
        segment_means_seq_len=draw.TIME,
        conv_kernel_size=TAPS,
        attention_probs_dropout_prob=0.0,
    )
    attention = NystromformerSelfAttention(config)
    attention.init_option = "exact"  # what its config would set, it reads wrongly
    return {"o": mixer.torchs(attention, weights, x)[0]}


def ours(x, **weights):
    import jax.numpy as jnp

    given = {f"qkv.{n[0]}.kernel": mixer.heads(weights[f"{n}.weight"], HEADS, WIDTH) for n in ("query", "key", "value")}
    given |= {f"qkv.{n[0]}.bias": weights[f"{n}.bias"].reshape(HEADS, WIDTH) for n in ("query", "key", "value")}
    given |= {
        "qkv.o.kernel": jnp.eye(DIM).reshape(HEADS, WIDTH, DIM),
        "qkv.o.bias": jnp.zeros(DIM),
    }  # the output layer is another module
    given["conv"] = weights["conv.weight"].reshape(HEADS, TAPS).T
    config = Nystromformer(num_heads=HEADS, head_dim=WIDTH, landmarks=LANDMARKS, conv_width=TAPS)
    return {"o": mixer.ours(config, DIM, x, given)}
