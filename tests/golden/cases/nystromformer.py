"""Nystromformer's self-attention: transformers. One row and one head, where its scale over the batch is ours."""

from effarch.mixers.nystromformer import Nystromformer
from tests.golden import draw, mixer

DIM, LANDMARKS, TAPS = 8, 8, 5


def inputs(rng):
    return {"x": rng.normal(size=(1, draw.TIME, DIM))}


def weights(rng):
    found = {}
    for name in ("query", "key", "value"):
        found |= {f"{name}.weight": rng.normal(size=(DIM, DIM)) * DIM**-0.5, f"{name}.bias": rng.normal(size=DIM)}
    return {**found, "conv.weight": rng.normal(size=(1, 1, TAPS, 1)) * TAPS**-0.5}


def independent(x, **weights):
    from transformers import NystromformerConfig
    from transformers.models.nystromformer.modeling_nystromformer import NystromformerSelfAttention

    config = NystromformerConfig(
        hidden_size=DIM,
        num_attention_heads=1,
        num_landmarks=LANDMARKS,
        segment_means_seq_len=draw.TIME,
        conv_kernel_size=TAPS,
        inv_coeff_init_option="original",
        attention_probs_dropout_prob=0.0,
    )
    return {"o": mixer.torchs(NystromformerSelfAttention(config), weights, x)[0]}


def ours(x, **weights):
    import jax.numpy as jnp

    given = {f"qkv.{n[0]}.kernel": mixer.heads(weights[f"{n}.weight"], 1, DIM) for n in ("query", "key", "value")}
    given |= {f"qkv.{n[0]}.bias": weights[f"{n}.bias"].reshape(1, DIM) for n in ("query", "key", "value")}
    given |= {"qkv.o.kernel": jnp.eye(DIM)[None], "qkv.o.bias": jnp.zeros(DIM)}  # the output layer is another module
    given["conv"] = weights["conv.weight"].reshape(TAPS, 1)
    config = Nystromformer(num_heads=1, head_dim=DIM, landmarks=LANDMARKS, conv_width=TAPS)
    return {"o": mixer.ours(config, DIM, x, given)}
