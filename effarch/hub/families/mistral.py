"""Mistral (2310.06825): Llama with a sliding window."""

from typing import Any

from effarch.hub.families import decoder
from effarch.hub.families.decoder import ignored, renamed, rules
from effarch.hub.fields import Fields
from effarch.hub.rope import rope
from effarch.mixers.sliding_window import SlidingWindow
from effarch.models.block import BlockConfig
from effarch.models.lm import LMConfig

__all__ = ["config", "export", "ignored", "renamed", "rules"]


def config(fields: Fields) -> LMConfig:
    """Ours for theirs."""
    window = fields.nullable("sliding_window", int, 4096)
    mixer = decoder.attention(decoder.heads(fields, kv_heads=8), rope(fields), window=window)
    fields.only("layer_types", None)
    count = decoder.depth(fields)
    return decoder.lm(fields, [BlockConfig(mixer=mixer, channel=decoder.gated(fields))] * count)


def export(config: LMConfig) -> dict[str, Any] | None:
    """Theirs for ours; None where it has no place for it."""
    mixer = config.pattern[0].mixer
    window = mixer.window if isinstance(mixer, SlidingWindow) else None
    named = {"model_type": "mistral", "architecture": "MistralForCausalLM"}
    return decoder.export(config, **named, sliding_window=window)
