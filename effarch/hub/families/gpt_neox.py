"""GPT-NeoX (2204.06745), Pythia (2304.01373): parallel residuals, part of a head rotated, q, k and v head by head."""

from collections.abc import Mapping, Sequence

from effarch.hub.families import decoder
from effarch.hub.fields import Fields
from effarch.hub.rope import rope
from effarch.hub.rules import Rule, Shape, interleaved
from effarch.models.block import BlockConfig
from effarch.models.lm import LMConfig

__all__ = ["config", "ignored", "renamed", "rules"]


def config(fields: Fields) -> LMConfig:
    """Ours for theirs."""
    turns = rope(fields, fraction=0.25, old_theta="rotary_emb_base", old_fraction="rotary_pct")
    dim, heads = fields.positive("hidden_size"), fields.positive("num_attention_heads")
    fields.ignore("classifier_dropout")
    biased = fields.take("attention_bias", bool, True)
    sizes = decoder.equal_heads(fields, dim, heads)
    mixer = decoder.attention(sizes, turns, qkv_bias=biased, out_bias=biased)
    channel = decoder.plain(fields, "hidden_act", "gelu", fields.positive("intermediate_size"))
    return decoder.lm(
        fields,
        [BlockConfig(mixer=mixer, channel=channel)] * decoder.depth(fields),
        norm="layer",
        norm_eps=fields.take("layer_norm_eps", float, 1e-5),
        parallel_blocks=fields.take("use_parallel_residual", bool, True),
    )


def rules(config: LMConfig, names: Mapping[str, Shape]) -> list[Rule]:
    """The tensors of a model."""
    found = decoder.ends(config, names, table="gpt_neox.embed_in", norm="gpt_neox.final_layer_norm")
    for i in range(config.num_layers):
        ours, theirs = f"layers.{i}", f"gpt_neox.layers.{i}"
        for mine, name in decoder.LLAMA_NORMS.items():
            found += decoder.norms(f"{ours}.{mine}", f"{theirs}.{name}", names)
        for kind, name in (("kernel", "weight"), ("bias", "bias")):
            parts = [f"{ours}.mixer.qkv.{part}.{kind}" for part in "qkv"]
            if parts[0] in names:
                found.append(interleaved(parts, f"{theirs}.attention.query_key_value.{name}", names[parts[0]]))
        found += decoder.projection(f"{ours}.mixer.qkv.o", f"{theirs}.attention.dense", names, contracted=2)
        for mine, name in (("up", "dense_h_to_4h"), ("down", "dense_4h_to_h")):
            found += decoder.projection(f"{ours}.channel.mlp.{mine}", f"{theirs}.mlp.{name}", names)
    return found


def ignored(name: str) -> bool:
    """The triangular masks and frequencies of older files."""
    return name.endswith((".attention.bias", ".attention.masked_bias", "rotary_emb.inv_freq"))


def renamed(names: Sequence[str]) -> dict[str, str]:
    """Names as newer files have them."""
    found = {name: "lm_head.weight" if name == "embed_out.weight" else name for name in names}
    bare = decoder.renamed(list(found.values()), prefix="gpt_neox.")
    return {name: bare[inside] for name, inside in found.items()}
