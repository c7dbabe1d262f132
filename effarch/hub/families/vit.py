"""ViT (2010.11929): bare, or with a head over classes. Images are ``[B, height, width, channels]`` here."""

from collections.abc import Mapping, Sequence

import numpy as np

from effarch.config import UserError
from effarch.hub.families import decoder, encoder
from effarch.hub.fields import Fields
from effarch.hub.rules import Rule, Shape, same
from effarch.models.classifier import ClassifierConfig
from effarch.models.encoder import EncoderConfig
from effarch.models.inputs import Patches

_PREFIX = "vit."


def config(fields: Fields, names: Sequence[str]) -> EncoderConfig:
    """Ours for theirs."""
    what = encoder.kind(fields, encoder.IMAGES)
    dim = fields.positive("hidden_size")
    height, width = _sides(fields, "image_size", 224)
    patch, other = _sides(fields, "patch_size", 16)
    if patch != other:
        raise UserError(f"{fields.where}: patch_size: expected squares, got {patch} x {other}")
    fields.ignore("encoder_stride")  # of another head
    pooler = what is encoder.BARE and f"{_PREFIX}pooler.dense.weight" in names
    if pooler:
        fields.only("pooler_act", "tanh")
        fields.only("pooler_output_size", None, dim)
    else:
        fields.ignore("pooler_act", "pooler_output_size")
    channels = fields.positive("num_channels", 3)
    return encoder.encoder(
        what,
        fields,
        encoder.block(fields, qkv_bias=fields.take("qkv_bias", bool, True)),
        input=Patches(height=height, width=width, channels=channels, patch=patch),
        pool="class_token_first",
        pooler=pooler,
    )


def _sides(fields: Fields, name: str, default: int) -> tuple[int, int]:
    """Height and width, of which there may be one number."""
    found = fields.take(name, (int, list), default)
    sides = found if isinstance(found, list) else [found, found]
    if len(sides) != 2 or any(type(side) is not int or side < 1 for side in sides):
        raise UserError(f"{fields.where}: {name}: expected one or two whole numbers above 0, got {found}")
    return sides[0], sides[1]


def rules(config: EncoderConfig, names: Mapping[str, Shape]) -> list[Rule]:
    """The tensors of a model."""
    below, patches = f"{_PREFIX}embeddings", config.input
    kernel, bias = "embedding.linear.kernel", "embedding.linear.bias"
    if not isinstance(patches, Patches):
        raise TypeError(f"input: expected patches, got {patches.type_name}")
    found = [
        _patches(kernel, f"{below}.patch_embeddings.projection.weight", patches, config.dim),
        same(bias, f"{below}.patch_embeddings.projection.bias", names[bias]),
        same("positions", f"{below}.position_embeddings", names["positions"], as_shape=(1, *names["positions"])),
        same("class_token", f"{below}.cls_token", names["class_token"], as_shape=(1, 1, config.dim)),
    ]
    found += encoder.layers(config, names, _PREFIX, norms=encoder.VIT_NORMS, attention="attention")
    found += decoder.norms("norm", f"{_PREFIX}layernorm", names)
    if config.pooler:
        found += decoder.projection("pooler", f"{_PREFIX}pooler.dense", names)
    if isinstance(config, ClassifierConfig):
        found += decoder.projection("head", "classifier", names)
    return found


def _patches(ours: str, theirs: str, patches: Patches, dim: int) -> Rule:
    """A convolution ``[dim, channels, p, p]``, and the projection of a patch, its pixels one after the other."""
    p, c = patches.patch, patches.channels
    return Rule(
        (ours,),
        (theirs,),
        ((dim, c, p, p),),
        lambda x: (np.transpose(x, (2, 3, 1, 0)).reshape(-1, dim),),
        lambda x: (np.transpose(x.reshape(p, p, c, dim), (3, 2, 0, 1)),),
    )


def ignored(name: str, config: EncoderConfig) -> bool:
    """What is for pretraining, or for a head that the model has not."""
    other = f"{_PREFIX}pooler." if isinstance(config, ClassifierConfig) else f"{_PREFIX}embeddings.mask_token"
    return name.startswith((f"{_PREFIX}embeddings.mask_token", other))


def copies(config: EncoderConfig) -> dict[str, str]:
    """None."""
    return {}


def renamed(names: Sequence[str]) -> dict[str, str]:
    """Names as models with a head have them."""
    return decoder.renamed(names, prefix=_PREFIX)
