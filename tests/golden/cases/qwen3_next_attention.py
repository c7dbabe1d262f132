"""Gated attention with norms of 1 + w and a quarter of each head rotated: transformers, Qwen3-Next's whole module."""

import jax.numpy as jnp
from flax import nnx

from effarch.mixers import Context, LayerInfo
from effarch.mixers.softmax_attention import SoftmaxAttention

TIME, DIM, HEADS, KV_HEADS, WIDTH = 24, 16, 4, 2, 16
CONFIG = SoftmaxAttention(
    num_heads=HEADS,
    num_kv_heads=KV_HEADS,
    head_dim=WIDTH,
    rope_theta=100.0,
    rope_fraction=0.25,
    qk_norm=True,
    qk_norm_plus_one=True,
    gate=True,
)


def inputs(rng):
    return {"x": rng.normal(size=(2, TIME, DIM))}


def weights(rng):
    rows = {"q_proj": 2 * HEADS * WIDTH, "k_proj": KV_HEADS * WIDTH, "v_proj": KV_HEADS * WIDTH}
    found = {name: rng.normal(size=(n, DIM)) * DIM**-0.5 for name, n in rows.items()}
    found["o_proj"] = rng.normal(size=(DIM, HEADS * WIDTH)) * (HEADS * WIDTH) ** -0.5
    return found | {name: 0.3 * rng.normal(size=WIDTH) for name in ("q_norm", "k_norm")}


def independent(x, **weights):
    import torch
    from transformers import Qwen3NextConfig
    from transformers.models.qwen3_next import modeling_qwen3_next as theirs

    config = Qwen3NextConfig(
        hidden_size=DIM,
        num_attention_heads=HEADS,
        num_key_value_heads=KV_HEADS,
        head_dim=WIDTH,
        rope_parameters={"rope_type": "default", "rope_theta": 100.0, "partial_rotary_factor": 0.25},
        attn_implementation="eager",
    )
    module = theirs.Qwen3NextAttention(config, 0)
    positions = theirs.Qwen3NextRotaryEmbedding(config)(x, torch.arange(TIME)[None])
    mask = torch.full((TIME, TIME), -torch.inf).triu(1)[None, None]
    parameters = {f"{name}.weight": weight for name, weight in weights.items()}
    return {"y": torch.func.functional_call(module, parameters, (x, positions, mask))[0]}


def ours(x, **weights):
    mixer = CONFIG.make(DIM, layer=LayerInfo(), rngs=nnx.Rngs(0))
    q, gate = jnp.split(weights["q_proj"].T.reshape(DIM, HEADS, 2 * WIDTH), 2, axis=-1)
    k, v = (weights[f"{name}_proj"].T.reshape(DIM, KV_HEADS, WIDTH) for name in ("k", "v"))
    for linear, kernel in ((mixer.qkv.q, q), (mixer.gate, gate), (mixer.qkv.k, k), (mixer.qkv.v, v)):
        linear.kernel[...] = kernel
    mixer.qkv.o.kernel[...] = weights["o_proj"].T.reshape(HEADS, WIDTH, DIM)
    mixer.q_norm.weight[...], mixer.k_norm.weight[...] = weights["q_norm"], weights["k_norm"]
    return {"y": mixer(x, None, Context.of(2, TIME)[0])[0]}
