"""Phi-3 (2404.14219): Llama with packed projections and LongRoPE."""

from collections.abc import Mapping

from effarch.hub.families import decoder
from effarch.hub.families.decoder import ignored, renamed
from effarch.hub.fields import Fields
from effarch.hub.rope import rope
from effarch.hub.rules import Rule, Shape
from effarch.models.block import BlockConfig
from effarch.models.lm import LMConfig

__all__ = ["config", "ignored", "renamed", "rules"]


def config(fields: Fields) -> LMConfig:
    """Ours for theirs."""
    original = fields.positive("original_max_position_embeddings", 4096)
    turns = rope(
        fields, old_fraction="partial_rotary_factor", original=original, called={"su": "longrope", "yarn": "longrope"}
    )
    fields.only("attention_bias", False)
    window = fields.take("sliding_window", int, None)
    mixer = decoder.attention(decoder.heads(fields), turns, window=window)
    count = decoder.depth(fields)
    eps = fields.take("rms_norm_eps", float, 1e-5)
    return decoder.lm(fields, [BlockConfig(mixer=mixer, channel=decoder.gated(fields))] * count, norm_eps=eps)


def rules(config: LMConfig, names: Mapping[str, Shape]) -> list[Rule]:
    """The tensors of a model."""
    return decoder.rules(config, names, packed=True)
