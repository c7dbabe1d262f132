"""Kimi Linear with dense layers: KDA, and latent attention that rotates nothing; transformers."""

import numpy as np

from effarch.mixers.kda import KDA
from effarch.mixers.mla import MLA
from effarch.mixers.swiglu import SwiGLU
from effarch.models.block import BlockConfig
from effarch.models.lm import LMConfig
from tests.golden import decoders

D, HEADS, WIDTH, RANK, SHARED, VALUE = 32, 4, 8, 12, 4, 6

mlp = SwiGLU(hidden=40)
config = LMConfig(
    vocab_size=48,
    dim=D,
    num_layers=3,
    pattern=(
        BlockConfig(
            mixer=KDA(num_heads=HEADS, head_dim=WIDTH, value_head_dim=WIDTH, gate_bias=False, norm_eps=1e-5),
            channel=mlp,
        ),
        BlockConfig(
            mixer=MLA(
                num_heads=HEADS,
                head_dim=WIDTH,
                shared_dim=SHARED,
                value_head_dim=VALUE,
                rank=RANK,
                q_rank=None,
                rope_theta=None,
            ),
            channel=mlp,
        ),
    ),
    norm_eps=1e-5,
    tie_embeddings=False,
)


def theirs():
    from transformers import KimiLinearConfig

    return KimiLinearConfig(
        vocab_size=48,
        hidden_size=D,
        intermediate_size=40,
        num_hidden_layers=3,
        num_attention_heads=HEADS,
        num_key_value_heads=HEADS,
        kv_lora_rank=RANK,
        qk_nope_head_dim=WIDTH,
        qk_rope_head_dim=SHARED,
        v_head_dim=VALUE,
        linear_num_heads=HEADS,
        linear_head_dim=WIDTH,
        layer_types=["linear_attention", "full_attention", "linear_attention"],
        mlp_layer_types=["dense"] * 3,
        pad_token_id=None,
        bos_token_id=0,
        eos_token_id=1,
    )


def shapes():
    return decoders.shapes(theirs())


def weight(name, x):
    """Slow decays."""
    return x - 3 if name.endswith("A_log") else x


def independent(weights, tokens):
    return decoders.logits(theirs(), weights, tokens)


def parameters(w):
    found = decoders.llama_like(w, 3)
    linears = {name: f"{name}_proj" for name in "qkvob"}
    linears |= {"a.inner": "forget_gate.f_a_proj", "a.outer": "forget_gate.f_b_proj"}
    linears |= {"gate.inner": "g_a_proj", "gate.outer": "g_b_proj"}
    others = {"dt_bias": "forget_gate.dt_bias", "log_rate": "forget_gate.A_log", "norm.weight": "o_norm.weight"}
    for i in (0, 2):
        ours, source = f"layers.{i}.mixer", f"model.layers.{i}.self_attn"
        found |= decoders.moved(w, ours, source, linears, others)
        found[f"{ours}.conv.weight"] = w[f"{source}.conv1d.weight"][:, 0].T
    ours, source = "layers.1.mixer", "model.layers.1.self_attn"
    parts = decoders.moved(w, ours, source, {"q": "q_proj", "o": "o_proj"}, {"c_norm.weight": "kv_a_layernorm.weight"})
    c, r = np.split(w[f"{source}.kv_a_proj_with_mqa.weight"].T, [RANK], axis=-1)
    k, v = np.split(w[f"{source}.kv_b_proj.weight"].T.reshape(RANK, HEADS, WIDTH + VALUE), [WIDTH], axis=-1)
    return found | parts | {f"{ours}.{name}.kernel": x for name, x in (("c", c), ("r", r), ("k", k), ("v", v))}
