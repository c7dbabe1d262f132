"""What the formats of Transformer encoders share: heads by the name of the architecture, layers of the same names.

A family of encoders is a module with ``config(fields, names)``, the names being those of all tensors; ``rules(config,
names)``; ``ignored(name, config)``; ``renamed(names)`` and ``copies(config)``, tensors that may be there once more.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from effarch.config import UserError
from effarch.hub.families import decoder
from effarch.hub.fields import Fields
from effarch.hub.rules import Rule, Shape, same
from effarch.mixers.encoder_attention import EncoderAttention
from effarch.mixers.gelu_mlp import GeluMLP
from effarch.models.block import BlockConfig
from effarch.models.classifier import ClassifierConfig
from effarch.models.encoder import EncoderConfig
from effarch.models.masked_lm import MaskedLMConfig

#: How the name of an architecture ends -> what stands on the encoder.
BARE, MASKED, CLASSES = EncoderConfig, MaskedLMConfig, ClassifierConfig
TEXTS: dict[str, type[EncoderConfig]] = {
    "Model": BARE,
    "ForMaskedLM": MASKED,
    "ForPreTraining": MASKED,
    "ForSequenceClassification": CLASSES,
}
IMAGES: dict[str, type[EncoderConfig]] = {"Model": BARE, "ForImageClassification": CLASSES}

#: Our norms of a layer -> theirs.
BERT_NORMS = {"mixer_norm": "attention.output.LayerNorm", "channel_norm": "output.LayerNorm"}
VIT_NORMS = {"mixer_norm": "layernorm_before", "channel_norm": "layernorm_after"}


def kind(fields: Fields, known: Mapping[str, type[EncoderConfig]]) -> type[EncoderConfig]:
    """What the architecture's name says; without one, a bare encoder. Raises ``UserError`` for other heads."""
    found = fields.take("architectures", list, ["Model"])
    for ending, config in known.items():
        if len(found) == 1 and str(found[0]).endswith(ending):
            return config
    raise UserError(f"{fields.where}: architectures: expected one that ends in {', '.join(known)}, got {found}")


def classes(fields: Fields) -> int:
    """How many a classifier has."""
    count = fields.positive("num_labels", len(fields.take("id2label", dict, {0: "", 1: ""})))
    if count < 2:
        raise UserError(f"{fields.where}: id2label: expected at least 2 classes, got {count}: a regression is none")
    return count


def block(fields: Fields, *, qkv_bias: bool = True) -> BlockConfig:
    """A layer."""
    dim = fields.positive("hidden_size")
    sizes = decoder.equal_heads(fields, dim, fields.positive("num_attention_heads"))
    channel = decoder.plain(fields, "hidden_act", "gelu", fields.positive("intermediate_size"))
    return BlockConfig(mixer=EncoderAttention(**sizes, qkv_bias=qkv_bias), channel=channel)


def encoder(kind: type[EncoderConfig], fields: Fields, block: BlockConfig, **options: Any) -> EncoderConfig:
    """The model of these layers; ``options``: further fields of our config."""
    if kind is CLASSES:
        options["classes"] = classes(fields)
    return kind(
        dim=fields.positive("hidden_size"),
        num_layers=fields.positive("num_hidden_layers"),
        pattern=(block,),
        norm="layer",
        norm_eps=fields.take("layer_norm_eps", float, 1e-12),
        positions="learned",
        **options,
    )


def text_encoder(
    fields: Fields, names: Sequence[str], *, length: int, token_types: int, prefix: str, activation: str | None = None
) -> EncoderConfig:
    """A BERT.

    Args:
      fields, names: of the family's ``config``. length: of the longest text. token_types: how many by default.
      prefix: of tensors below the head. activation: of the masked language model's head; None: that of the layers.
    """
    what = kind(fields, TEXTS)
    fields.only("is_decoder", False)
    fields.only("add_cross_attention", False)
    fields.only("position_embedding_type", "absolute")
    fields.ignore("classifier_dropout")
    layer, options = block(fields), {}
    if what is MASKED:
        fields.only("tie_word_embeddings", True)
        channel = layer.channel
        if activation is None and isinstance(channel, GeluMLP):
            gelu = "gelu_tanh" if channel.approximate else "gelu"
            activation = "relu" if channel.activation == "relu" else gelu
        options["activation"] = activation
    kinds = fields.positive("type_vocab_size", token_types)
    pooler = what is CLASSES or (what is BARE and f"{prefix}pooler.dense.weight" in names)
    return encoder(
        what,
        fields,
        layer,
        input={"type": "ids", "vocab_size": fields.positive("vocab_size"), "length": length, "token_types": kinds},
        norm_after=True,
        embed_norm=True,
        pool="first",
        pooler=pooler,
        **options,
    )


def layers(
    config: EncoderConfig, names: Mapping[str, Shape], prefix: str, *, norms: Mapping[str, str], attention: str
) -> list[Rule]:
    """Tensors of the layers; ``norms``: ours -> theirs; ``attention``: what stands before query, key and value."""
    found = []
    for i in range(config.num_layers):
        ours, theirs = f"layers.{i}", f"{prefix}encoder.layer.{i}"
        for mine, name in norms.items():
            found += decoder.norms(f"{ours}.{mine}", f"{theirs}.{name}", names)
        for mine, name in (("q", "query"), ("k", "key"), ("v", "value")):
            found += decoder.projection(f"{ours}.mixer.qkv.{mine}", f"{theirs}.attention.{attention}.{name}", names)
        found += decoder.projection(f"{ours}.mixer.qkv.o", f"{theirs}.attention.output.dense", names, contracted=2)
        found += decoder.projection(f"{ours}.channel.mlp.up", f"{theirs}.intermediate.dense", names)
        found += decoder.projection(f"{ours}.channel.mlp.down", f"{theirs}.output.dense", names)
    return found


def text_rules(config: EncoderConfig, names: Mapping[str, Shape], prefix: str) -> list[Rule]:
    """Tensors of a BERT without its positions and heads."""
    table, types = "embedding.table", "token_types.table"
    below = f"{prefix}embeddings"
    found = [same(table, f"{below}.word_embeddings.weight", names[table])]
    found.append(same(types, f"{below}.token_type_embeddings.weight", names[types]))
    found += decoder.norms("embed_norm", f"{below}.LayerNorm", names)
    return found + layers(config, names, prefix, norms=BERT_NORMS, attention="self")


def masked_head(names: Mapping[str, Shape], dense: str, norm: str, bias: str) -> list[Rule]:
    """Tensors of the masked language model's head."""
    found = decoder.projection("transform", dense, names) + decoder.norms("transform_norm", norm, names)
    return [*found, same("unembed_bias", bias, names["unembed_bias"])]
