"""GPT-2: learned positions, LayerNorm, biases everywhere, q, k and v in one tensor, weights not transposed."""

from collections.abc import Mapping, Sequence

from effarch.hub.families import decoder
from effarch.hub.fields import Fields
from effarch.hub.rules import Rule, Shape, concatenated, concatenated_biases, same
from effarch.mixers.softmax_attention import SoftmaxAttention
from effarch.models.block import BlockConfig
from effarch.models.lm import LMConfig

__all__ = ["config", "ignored", "renamed", "rules"]


def config(fields: Fields) -> LMConfig:
    """Ours for theirs."""
    dim, heads = fields.positive("n_embd", old="hidden_size"), fields.positive("n_head", old="num_attention_heads")
    count = decoder.depth(fields, "n_layer", old="num_hidden_layers")
    channel = decoder.plain(fields, "activation_function", "gelu_new", fields.positive("n_inner", 4 * dim))
    fields.only("add_cross_attention", False)
    fields.ignore("reorder_and_upcast_attn", "n_ctx")  # the order of two products; the length of once
    fields.ignore(*(name for name in fields.names if name.startswith("summary_")))  # of another head
    scaled = fields.take("scale_attn_weights", bool, True)
    by_layer = fields.take("scale_attn_by_inverse_layer_idx", bool, False)
    sizes = decoder.equal_heads(fields, dim, heads)
    blocks = []
    for i in range(count):
        scale = (sizes["head_dim"] ** -0.5 if scaled else 1.0) / (i + 1 if by_layer else 1)
        usual = scaled and not by_layer
        mixer = SoftmaxAttention(
            **sizes, rope_theta=None, qkv_bias=True, out_bias=True, query_scale=None if usual else scale
        )
        blocks.append(BlockConfig(mixer=mixer, channel=channel))
    return decoder.lm(
        fields,
        blocks,
        dim=dim,
        tied=True,
        norm="layer",
        norm_eps=fields.take("layer_norm_epsilon", float, 1e-5),
        learned_positions=fields.positive("n_positions", 1024, old="max_position_embeddings"),
    )


def rules(config: LMConfig, names: Mapping[str, Shape]) -> list[Rule]:
    """The tensors of a model."""
    found = decoder.ends(config, names, table="transformer.wte", norm="transformer.ln_f")
    positions = "position_embedding.table"
    found.append(same(positions, "transformer.wpe.weight", names[positions]))
    for i in range(config.num_layers):
        ours, theirs = f"layers.{i}", f"transformer.h.{i}"
        for mine, name in (("mixer_norm", "ln_1"), ("channel_norm", "ln_2")):
            found += decoder.norms(f"{ours}.{mine}", f"{theirs}.{name}", names)
        kernels, biases = ([f"{ours}.mixer.qkv.{part}.{kind}" for part in "qkv"] for kind in ("kernel", "bias"))
        whole, shapes = f"{theirs}.attn.c_attn", [names[kernel] for kernel in kernels]
        found.append(concatenated(kernels, f"{whole}.weight", shapes, transposed=False))
        found.append(concatenated_biases(biases, f"{whole}.bias", [names[bias] for bias in biases]))
        found += decoder.projection(
            f"{ours}.mixer.qkv.o", f"{theirs}.attn.c_proj", names, contracted=2, transposed=False
        )
        for mine, name in (("up", "c_fc"), ("down", "c_proj")):
            found += decoder.projection(f"{ours}.channel.mlp.{mine}", f"{theirs}.mlp.{name}", names, transposed=False)
    return found


def ignored(name: str) -> bool:
    """The triangular masks of older files."""
    return name.endswith((".attn.bias", ".attn.masked_bias"))


def renamed(names: Sequence[str]) -> dict[str, str]:
    """Names as models with a head have them; the files of the hub lack their prefix."""
    return decoder.renamed(names, prefix="transformer.")
