"""SmolLM3: Llama in which some layers have no positions."""

from effarch.config import UserError
from effarch.hub.families import decoder
from effarch.hub.families.decoder import FULL, SLIDING, ignored, renamed, rules
from effarch.hub.fields import Fields
from effarch.hub.rope import rope
from effarch.models.block import BlockConfig
from effarch.models.lm import LMConfig

__all__ = ["config", "ignored", "renamed", "rules"]


def config(fields: Fields) -> LMConfig:
    """Ours for theirs."""
    sizes, turns = decoder.heads(fields, kv_heads=4), rope(fields, theta=2e6)
    count = decoder.depth(fields)
    biased = fields.take("attention_bias", bool, False)
    channel = decoder.gated(fields, bias=fields.take("mlp_bias", bool, False))
    interval = fields.positive("no_rope_layer_interval", 4)
    turned = fields.take("no_rope_layers", list, [int((i + 1) % interval != 0) for i in range(count)])  # 1: it has them
    if len(turned) < count or any(x not in (0, 1) for x in turned):
        raise UserError(f"{fields.where}: no_rope_layers: expected {count} of 0 and 1, got {turned}")
    window = fields.take("sliding_window", int, None)
    window = window if fields.take("use_sliding_window", bool, False) else None
    kinds = decoder.layer_types(fields, count, lambda i: SLIDING if window is not None and not turned[i] else FULL)
    blocks = []
    for i, width in enumerate(decoder.windows(fields, kinds, window)):
        options = {"qkv_bias": biased, "out_bias": biased} | ({} if turned[i] else {"rope_theta": None})
        blocks.append(BlockConfig(mixer=decoder.attention(sizes, turns, window=width, **options), channel=channel))
    return decoder.lm(fields, blocks, tied=True)
