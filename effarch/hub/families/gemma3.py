"""Gemma 3 (2503.19786), the language model: norms of q and k, and other rotary wavelengths where the window is.

A checkpoint of text and images (``gemma3``) is read for its language model alone.
"""

from collections.abc import Mapping, Sequence

from effarch.hub.families import decoder
from effarch.hub.families.decoder import FULL, GEMMA_NORMS, SLIDING
from effarch.hub.fields import Fields
from effarch.hub.rope import Rope, one_rope, rope
from effarch.hub.rules import Rule, Shape
from effarch.models.lm import LMConfig

__all__ = ["config", "ignored", "renamed", "rules"]

_OF_IMAGES = ("vision_tower.", "multi_modal_projector.", "model.vision_tower.", "model.multi_modal_projector.")
_TEXT = ("language_model.model.", "model.language_model.")  # as older and newer files have it


def config(fields: Fields) -> LMConfig:
    """Ours for theirs."""
    if fields.has("text_config"):
        fields.ignore("vision_config", "mm_tokens_per_image", "image_token_index", "boi_token_index", "eoi_token_index")
        inside = fields.nested("text_config")
        tied = fields.take("tie_word_embeddings", bool, None)
        found = _text(inside)
        inside.finish()
        return found if tied is None else found.replace(tie_embeddings=tied)
    return _text(fields)


def _text(fields: Fields) -> LMConfig:
    fields.default(vocab_size=262208, hidden_size=2304, intermediate_size=9216)  # files of larger ones rely on these
    fields.default(num_hidden_layers=26, num_attention_heads=8)
    sizes = decoder.heads(fields, kv_heads=4, head_dim=256)
    count = decoder.depth(fields)
    options = decoder.gemma_options(fields)
    options |= {"qk_norm": True, "qk_norm_plus_one": True, "qk_norm_eps": fields.take("rms_norm_eps", float, 1e-6)}
    fields.only("attn_logit_softcapping", None)  # transformers does not compute it
    every = fields.positive("sliding_window_pattern", fields.positive("_sliding_window_pattern", 6))
    kinds = decoder.layer_types(fields, count, lambda i: SLIDING if (i + 1) % every else FULL)
    windows = decoder.windows(fields, kinds, fields.nullable("sliding_window", int, 4096))
    turns = _ropes(fields)
    mixers = [
        decoder.attention(sizes, turns[kind], window=window, **options)
        for kind, window in zip(kinds, windows, strict=True)
    ]
    return decoder.gemma(fields, mixers, logit_cap=fields.take("final_logit_softcapping", float, None))


def _ropes(fields: Fields) -> dict[str, Rope]:
    """The rotary positions of layers that see all, and of those with a window."""
    parts = fields.nested("rope_parameters")
    if not (parts.has(FULL) or parts.has(SLIDING)):  # the older spelling scales the former only
        local = fields.take("rope_local_base_freq", float, 10000.0)
        return {FULL: rope(fields, theta=1e6), SLIDING: Rope(local, None, 1.0)}
    fields.only("rope_scaling", None)
    found = {}
    for kind, old, theta in ((FULL, "rope_theta", 1e6), (SLIDING, "rope_local_base_freq", 10000.0)):
        found[kind] = one_rope(parts.nested(kind), fields, theta=fields.take(old, float, theta))
    parts.finish()
    return found


def rules(config: LMConfig, names: Mapping[str, Shape]) -> list[Rule]:
    """The tensors of a model."""
    return decoder.rules(config, names, layer_norms=GEMMA_NORMS)


def ignored(name: str) -> bool:
    """Tensors that older files have and that say nothing, and those that look at images."""
    return decoder.ignored(name) or name.startswith(_OF_IMAGES)


def renamed(names: Sequence[str]) -> dict[str, str]:
    """Names as models of text alone have them."""
    found = {}
    for name in names:
        prefix = next((p for p in _TEXT if name.startswith(p)), None)
        inside = name if prefix is None else "model." + name.removeprefix(prefix)
        found[name] = inside.replace("language_model.lm_head.", "lm_head.")
    bare = decoder.renamed(list(found.values()))
    return {name: bare[inside] for name, inside in found.items()}
