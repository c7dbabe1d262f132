"""Llama (2302.13971) and what shares its tensors."""

from collections.abc import Mapping
from typing import Any

from effarch.hub.fields import Fields
from effarch.hub.rope import rope_theta
from effarch.hub.rules import Rule, Shape, linear, same
from effarch.mixers.softmax_attention import SoftmaxAttention
from effarch.mixers.swiglu import SwiGLU
from effarch.models.block import BlockConfig
from effarch.models.lm import LMConfig


def config(fields: Fields) -> LMConfig:
    """Ours for theirs."""
    dim, heads = fields.positive("hidden_size"), fields.positive("num_attention_heads")
    fields.only("hidden_act", "silu")
    fields.only("attention_bias", False)
    fields.only("mlp_bias", False)
    fields.only("sliding_window", None)
    return LMConfig(
        vocab_size=fields.positive("vocab_size"),
        dim=dim,
        num_layers=fields.positive("num_hidden_layers"),
        pattern=(
            BlockConfig(
                mixer=SoftmaxAttention(
                    num_heads=heads,
                    num_kv_heads=fields.positive("num_key_value_heads", heads),
                    head_dim=fields.positive("head_dim", dim // heads),
                    rope_theta=rope_theta(fields),
                ),
                channel=SwiGLU(hidden=fields.positive("intermediate_size")),
            ),
        ),
        norm_eps=fields.take("rms_norm_eps", float, 1e-6),
        tie_embeddings=fields.take("tie_word_embeddings", bool, False),
    )


def rules(config: LMConfig, names: Mapping[str, Shape]) -> list[Rule]:
    """The tensors of a model."""
    found = [
        same("embedding.table", "model.embed_tokens.weight", names["embedding.table"]),
        same("norm.weight", "model.norm.weight", names["norm.weight"]),
    ]
    if not config.tie_embeddings:
        found.append(linear("unembed.kernel", "lm_head.weight", names["unembed.kernel"]))
    for i in range(config.num_layers):
        ours, theirs = f"layers.{i}", f"model.layers.{i}"
        for mine, name in (("mixer_norm", "input_layernorm"), ("channel_norm", "post_attention_layernorm")):
            found.append(same(f"{ours}.{mine}.weight", f"{theirs}.{name}.weight", names[f"{ours}.{mine}.weight"]))
        for name in "qkvo":
            kernel = f"{ours}.mixer.qkv.{name}.kernel"
            contracted = 2 if name == "o" else 1
            found.append(linear(kernel, f"{theirs}.self_attn.{name}_proj.weight", names[kernel], contracted=contracted))
        for name in ("gate", "up", "down"):
            kernel = f"{ours}.channel.mlp.{name}.kernel"
            found.append(linear(kernel, f"{theirs}.mlp.{name}_proj.weight", names[kernel]))
    return found


def ignored(name: str) -> bool:
    """Tensors that older files have and that say nothing."""
    return name.endswith("rotary_emb.inv_freq")


def export(config: LMConfig) -> dict[str, Any] | None:
    """Theirs for ours; reading it gives ``config`` again."""
    mixer, channel = config.pattern[0].mixer, config.pattern[0].channel
    if not isinstance(mixer, SoftmaxAttention) or not isinstance(channel, SwiGLU):
        return None
    return {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "vocab_size": config.vocab_size,
        "hidden_size": config.dim,
        "intermediate_size": channel.hidden,
        "num_hidden_layers": config.num_layers,
        "num_attention_heads": mixer.num_heads,
        "num_key_value_heads": mixer.num_kv_heads,
        "head_dim": mixer.head_dim,
        "hidden_act": "silu",
        "rms_norm_eps": config.norm_eps,
        "rope_theta": mixer.rope_theta,
        "rope_parameters": {"rope_type": "default", "rope_theta": mixer.rope_theta},
        "tie_word_embeddings": config.tie_embeddings,
        "attention_bias": False,
        "mlp_bias": False,
        "torch_dtype": config.param_dtype,
    }
