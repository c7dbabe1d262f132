"""Qwen3 (2505.09388): Qwen2 with norms of q and k in the place of biases."""

from typing import Any

from effarch.hub.families import decoder
from effarch.hub.families.decoder import ignored, renamed, rules
from effarch.hub.fields import Fields
from effarch.hub.rope import rope
from effarch.mixers.softmax_attention import SoftmaxAttention
from effarch.models.block import BlockConfig
from effarch.models.lm import LMConfig

__all__ = ["config", "export", "ignored", "renamed", "rules"]


def config(fields: Fields) -> LMConfig:
    """Ours for theirs."""
    sizes, turns = decoder.heads(fields, kv_heads=32, head_dim=128), rope(fields)
    channel = decoder.gated(fields)
    biased = fields.take("attention_bias", bool, False)
    options = {"qkv_bias": biased, "out_bias": biased}
    options |= {"qk_norm": True, "qk_norm_eps": fields.take("rms_norm_eps", float, 1e-6)}
    windows = decoder.qwen_windows(fields, decoder.depth(fields))
    mixers = [decoder.attention(sizes, turns, window=window, **options) for window in windows]
    return decoder.lm(fields, [BlockConfig(mixer=mixer, channel=channel) for mixer in mixers])


def export(config: LMConfig) -> dict[str, Any] | None:
    """Theirs for ours; None where it has no place for it."""
    mixer = config.pattern[0].mixer
    biased = isinstance(mixer, SoftmaxAttention) and mixer.qkv_bias
    named = {"model_type": "qwen3", "architecture": "Qwen3ForCausalLM"}
    more = {"attention_bias": biased, **decoder.sliding_fields(config)}
    return decoder.export(config, **named, **more)
