"""A Llama: grouped queries, rotary positions, SwiGLU; transformers."""

from effarch.mixers.softmax_attention import SoftmaxAttention
from effarch.mixers.swiglu import SwiGLU
from effarch.models.block import BlockConfig
from effarch.models.lm import LMConfig
from tests.golden import decoders

config = LMConfig(
    vocab_size=48,
    dim=32,
    num_layers=2,
    pattern=(
        BlockConfig(
            mixer=SoftmaxAttention(num_heads=4, num_kv_heads=2, head_dim=8, rope_theta=500.0),
            channel=SwiGLU(hidden=40),
        ),
    ),
    norm_eps=1e-5,
    tie_embeddings=False,
)


def theirs():
    from transformers import LlamaConfig

    return LlamaConfig(
        vocab_size=48,
        hidden_size=32,
        intermediate_size=40,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        rms_norm_eps=1e-5,
        rope_parameters={"rope_type": "default", "rope_theta": 500.0},
    )


def shapes():
    return decoders.shapes(theirs())


def independent(weights, tokens):
    return decoders.logits(theirs(), weights, tokens)


def parameters(w):
    found = decoders.llama_like(w, 2)
    for i in range(2):
        found |= decoders.moved(w, f"layers.{i}.mixer", f"model.layers.{i}.self_attn", decoders.ATTENTION, {})
    return found
