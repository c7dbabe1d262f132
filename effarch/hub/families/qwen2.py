"""Qwen2 and Qwen2.5 (2407.10671, 2412.15115): Llama with biases on q, k and v, and windows in later layers."""

from typing import Any

from effarch.hub.families import decoder
from effarch.hub.families.decoder import ignored, renamed, rules
from effarch.hub.fields import Fields
from effarch.hub.rope import rope
from effarch.models.block import BlockConfig
from effarch.models.lm import LMConfig

__all__ = ["config", "export", "ignored", "renamed", "rules"]


def config(fields: Fields) -> LMConfig:
    """Ours for theirs."""
    sizes, turns = decoder.heads(fields, kv_heads=32), rope(fields)
    channel = decoder.gated(fields)
    fields.only("use_mrope", False)
    windows = decoder.qwen_windows(fields, decoder.depth(fields))
    mixers = [decoder.attention(sizes, turns, window=window, qkv_bias=True) for window in windows]
    return decoder.lm(fields, [BlockConfig(mixer=mixer, channel=channel) for mixer in mixers])


def export(config: LMConfig) -> dict[str, Any] | None:
    """Theirs for ours; None where it has no place for it."""
    named = {"model_type": "qwen2", "architecture": "Qwen2ForCausalLM"}
    return decoder.export(config, **named, **decoder.sliding_fields(config))
