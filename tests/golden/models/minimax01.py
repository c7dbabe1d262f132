"""MiniMax-01 with one expert, which is a dense layer: Lightning and softmax attention, DeepNorm residuals.

Of transformers, whose class rotates whole heads where the released model rotates half.
"""

import numpy as np

from effarch.mixers.lightning import Lightning
from effarch.mixers.softmax_attention import SoftmaxAttention
from effarch.mixers.swiglu import SwiGLU
from effarch.models.block import BlockConfig
from effarch.models.lm import LMConfig
from tests.golden import decoders

D, HEADS, WIDTH, HIDDEN, LAYERS = 32, 4, 8, 40, 3

mlp = SwiGLU(hidden=HIDDEN)
config = LMConfig(
    vocab_size=48,
    dim=D,
    num_layers=LAYERS,
    pattern=(
        BlockConfig(mixer=Lightning(num_heads=HEADS, head_dim=WIDTH), channel=mlp),
        BlockConfig(
            mixer=SoftmaxAttention(num_heads=HEADS, num_kv_heads=2, head_dim=WIDTH, rope_theta=500.0), channel=mlp
        ),
    ),
    norm_eps=1e-5,
    deep_norm=True,
    tie_embeddings=False,
)


def theirs():
    from transformers import MiniMaxConfig

    alphas = ("full_attn_alpha_factor", "linear_attn_alpha_factor", "mlp_alpha_factor")
    return MiniMaxConfig(
        vocab_size=48,
        hidden_size=D,
        intermediate_size=HIDDEN,
        num_hidden_layers=LAYERS,
        num_attention_heads=HEADS,
        num_key_value_heads=2,
        head_dim=WIDTH,
        num_local_experts=1,
        num_experts_per_tok=1,
        rope_parameters={"rope_type": "default", "rope_theta": 500.0},
        layer_types=["linear_attention", "full_attention", "linear_attention"],
        block_size=16,
        **dict.fromkeys(alphas, (2 * LAYERS) ** 0.25),
    )


def shapes():
    return decoders.shapes(theirs())


def independent(weights, tokens):
    return decoders.logits(theirs(), weights, tokens)


def parameters(w):
    found = decoders.llama_like(w, LAYERS, dense=False)
    for i in range(LAYERS):
        ours, source = f"layers.{i}.channel.mlp", f"model.layers.{i}.mlp"
        _ = w[f"{source}.gate.weight"]  # the router of one expert, whose weight is 1 whatever it says
        gate, up = np.split(w[f"{source}.experts.gate_up_proj"][0].T, 2, axis=-1)
        down = w[f"{source}.experts.down_proj"][0].T
        found |= {f"{ours}.{name}.kernel": x for name, x in (("gate", gate), ("up", up), ("down", down))}
    for i in (0, 2):
        ours, source = f"layers.{i}.mixer", f"model.layers.{i}.self_attn"
        q, k, v = np.split(w[f"{source}.qkv_proj.weight"].T.reshape(D, HEADS, 3 * WIDTH), 3, axis=-1)
        found |= {f"{ours}.qkv.{name}.kernel": x for name, x in (("q", q), ("k", k), ("v", v))}
        linears = {"qkv.o": "out_proj", "gate": "output_gate"}
        found |= decoders.moved(w, ours, source, linears, {"norm.weight": "norm.weight"})
    return found | decoders.moved(w, "layers.1.mixer", "model.layers.1.self_attn", decoders.ATTENTION, {})
