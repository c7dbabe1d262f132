"""xLSTM, mLSTM blocks only as in xLSTM-7B: transformers, its torch path: two chunks of 16, then token by token."""

from effarch.mixers.mlstm import MLSTM
from effarch.mixers.swiglu import SwiGLU
from effarch.models.block import BlockConfig
from effarch.models.lm import LMConfig
from tests.golden import decoders

D, H, LAYERS = 16, 2, 2

config = LMConfig(
    vocab_size=48,
    dim=D,
    num_layers=LAYERS,
    pattern=(
        BlockConfig(mixer=MLSTM(num_heads=H, head_dim=D // H // 2, value_head_dim=D // H), channel=SwiGLU(hidden=64)),
    ),
    tie_embeddings=False,
    logit_cap=30.0,
)


def theirs():
    from transformers import xLSTMConfig

    return xLSTMConfig(
        vocab_size=48,
        hidden_size=D,
        num_hidden_layers=LAYERS,
        num_heads=H,
        chunk_size=16,
        autocast_kernel_dtype="float32",
    )


def shapes():
    return decoders.shapes(theirs())


def weight(name, x):
    """Slow forgetting, and logits that reach their cap."""
    if name == "lm_head.weight":
        return 20 * x
    return 8 * x if name.endswith("fgate_preact.bias") else x


def independent(weights, tokens):
    return decoders.logits(theirs(), weights, tokens)


def parameters(w):
    found = {
        "embedding.table": w["backbone.embeddings.weight"],
        "norm.weight": w["backbone.out_norm.weight"],
        "unembed.kernel": w["lm_head.weight"].T,
    }
    linears = {"qkv.q": "q", "qkv.k": "k", "qkv.v": "v", "qkv.o": "out_proj", "gate": "ogate_preact"}
    others = {"i_bias": "igate_preact.bias", "f_bias": "fgate_preact.bias", "norm.weight": "multihead_norm.weight"}
    for i in range(LAYERS):
        ours, source = f"layers.{i}", f"backbone.blocks.{i}"
        mlp = {"channel.mlp.gate": "proj_up_gate", "channel.mlp.up": "proj_up", "channel.mlp.down": "proj_down"}
        norms = {"mixer_norm.weight": "norm_mlstm.weight", "channel_norm.weight": "norm_ffn.weight"}
        found |= decoders.moved(w, ours, source, {mine: f"ffn.{name}" for mine, name in mlp.items()}, norms)
        found |= decoders.moved(w, f"{ours}.mixer", f"{source}.mlstm_layer", linears, others)
        gates = {f"{ours}.mixer.{g}.kernel": w[f"{source}.mlstm_layer.{g}gate_preact.weight"].T for g in "if"}
        found |= gates
    return found
