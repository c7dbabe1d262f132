"""Gemma 2 (2408.00118): norms before and after each mixer, capped logits, a window in every other layer."""

from collections.abc import Mapping

from effarch.hub.families import decoder
from effarch.hub.families.decoder import FULL, GEMMA_NORMS, SLIDING, ignored, renamed
from effarch.hub.fields import Fields
from effarch.hub.rope import rope
from effarch.hub.rules import Rule, Shape
from effarch.models.lm import LMConfig

__all__ = ["config", "ignored", "renamed", "rules"]


def config(fields: Fields) -> LMConfig:
    """Ours for theirs."""
    sizes, turns = decoder.heads(fields, kv_heads=4, head_dim=256), rope(fields)
    count = decoder.depth(fields)
    options = decoder.gemma_options(fields) | {"logit_cap": fields.nullable("attn_logit_softcapping", float, 50.0)}
    kinds = decoder.layer_types(fields, count, lambda i: FULL if i % 2 else SLIDING)
    windows = decoder.windows(fields, kinds, fields.nullable("sliding_window", int, 4096))
    mixers = [decoder.attention(sizes, turns, window=window, **options) for window in windows]
    return decoder.gemma(fields, mixers, logit_cap=fields.nullable("final_logit_softcapping", float, 30.0))


def rules(config: LMConfig, names: Mapping[str, Shape]) -> list[Rule]:
    """The tensors of a model."""
    return decoder.rules(config, names, layer_norms=GEMMA_NORMS)
