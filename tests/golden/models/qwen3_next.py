"""Qwen3-Next with dense layers: Gated DeltaNet (two value heads to a key head), gated attention.

Its norms multiply by 1 + w, a quarter of each head is rotated; transformers.
"""

import numpy as np

from effarch.mixers.gated_deltanet import GatedDeltaNet
from effarch.mixers.softmax_attention import SoftmaxAttention
from effarch.mixers.swiglu import SwiGLU
from effarch.models.block import BlockConfig
from effarch.models.lm import LMConfig
from tests.golden import decoders

D, HK, H, K, V = 32, 2, 4, 8, 6  # of Gated DeltaNet
HEADS, WIDTH = 4, 16  # of attention

mlp = SwiGLU(hidden=40)
config = LMConfig(
    vocab_size=48,
    dim=D,
    num_layers=3,
    pattern=(
        BlockConfig(mixer=GatedDeltaNet(num_heads=H, num_key_heads=HK, head_dim=K, value_head_dim=V), channel=mlp),
        BlockConfig(
            mixer=SoftmaxAttention(
                num_heads=HEADS,
                num_kv_heads=2,
                head_dim=WIDTH,
                rope_theta=100.0,
                rope_fraction=0.25,
                qk_norm=True,
                qk_norm_plus_one=True,
                gate=True,
            ),
            channel=mlp,
        ),
    ),
    norm="rms_plus_one",
    tie_embeddings=False,
)


def theirs():
    from transformers import Qwen3NextConfig

    return Qwen3NextConfig(
        vocab_size=48,
        hidden_size=D,
        intermediate_size=40,
        num_hidden_layers=3,
        num_attention_heads=HEADS,
        num_key_value_heads=2,
        head_dim=WIDTH,
        rope_parameters={"rope_type": "default", "rope_theta": 100.0, "partial_rotary_factor": 0.25},
        linear_num_key_heads=HK,
        linear_num_value_heads=H,
        linear_key_head_dim=K,
        linear_value_head_dim=V,
        layer_types=["linear_attention", "full_attention", "linear_attention"],
        mlp_only_layers=[0, 1, 2],
    )


def shapes():
    return decoders.shapes(theirs())


def weight(name, x):
    """Slow decays; norms about 1."""
    if name.endswith("A_log"):
        return x - 3
    return x - 0.5 if "norm" in name and "linear_attn" not in name else x


def independent(weights, tokens):
    return decoders.logits(theirs(), weights, tokens)


def parameters(w):
    found = decoders.llama_like(w, 3)
    for i in (0, 2):
        ours, source = f"layers.{i}.mixer", f"model.layers.{i}.linear_attn"
        each = H // HK  # their projections are grouped by key head
        qkvz = w[f"{source}.in_proj_qkvz.weight"].T.reshape(D, HK, -1)
        parts = dict(zip(("q", "k", "v", "gate"), np.split(qkvz, [K, 2 * K, 2 * K + each * V], axis=-1), strict=True))
        parts["b"], parts["a"] = np.split(w[f"{source}.in_proj_ba.weight"].T.reshape(D, HK, -1), 2, axis=-1)
        found |= {f"{ours}.{name}.kernel": x for name, x in parts.items()}
        others = {"dt_bias": "dt_bias", "log_rate": "A_log", "norm.weight": "norm.weight"}
        found |= decoders.moved(w, ours, source, {"o": "out_proj"}, others)
        found[f"{ours}.conv.weight"] = w[f"{source}.conv1d.weight"][:, 0].T
    ours, source = "layers.1.mixer", "model.layers.1.self_attn"
    norms = {f"{name}.weight": f"{name}.weight" for name in ("q_norm", "k_norm")}
    found |= decoders.moved(w, ours, source, decoders.ATTENTION, norms)
    q, gate = np.split(w[f"{source}.q_proj.weight"].T.reshape(D, HEADS, 2 * WIDTH), 2, axis=-1)
    return found | {f"{ours}.qkv.q.kernel": q, f"{ours}.gate.kernel": gate}
