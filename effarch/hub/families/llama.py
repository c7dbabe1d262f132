"""Llama (2302.13971, 2307.09288, 2407.21783), SmolLM, and what else calls itself ``llama``."""

from typing import Any

from effarch.hub.families import decoder
from effarch.hub.families.decoder import ignored, renamed, rules
from effarch.hub.fields import Fields
from effarch.hub.rope import rope
from effarch.mixers.geglu import GeGLU
from effarch.mixers.softmax_attention import SoftmaxAttention
from effarch.mixers.swiglu import SwiGLU
from effarch.models.block import BlockConfig
from effarch.models.lm import LMConfig

__all__ = ["config", "export", "ignored", "renamed", "rules"]


def config(fields: Fields) -> LMConfig:
    """Ours for theirs."""
    biased = fields.take("attention_bias", bool, False)
    mixer = decoder.attention(decoder.heads(fields), rope(fields), qkv_bias=biased, out_bias=biased)
    channel = decoder.gated(fields, bias=fields.take("mlp_bias", bool, False))
    fields.only("sliding_window", None)
    count = decoder.depth(fields)
    return decoder.lm(fields, [BlockConfig(mixer=mixer, channel=channel)] * count)


def export(config: LMConfig) -> dict[str, Any] | None:
    """Theirs for ours; None where it has no place for it."""
    mixer, channel = config.pattern[0].mixer, config.pattern[0].channel
    biases = {
        "attention_bias": isinstance(mixer, SoftmaxAttention) and mixer.qkv_bias,
        "mlp_bias": isinstance(channel, SwiGLU | GeGLU) and channel.bias,
    }
    return decoder.export(config, model_type="llama", architecture="LlamaForCausalLM", **biases)
