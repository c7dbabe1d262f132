"""RoBERTa (1907.11692): a BERT whose positions begin at 2, behind that of padding, and whose heads have other names."""

from collections.abc import Mapping, Sequence

import numpy as np

from effarch.config import UserError
from effarch.hub.families import decoder, encoder
from effarch.hub.fields import Fields
from effarch.hub.rules import Rule, Shape
from effarch.models.classifier import ClassifierConfig
from effarch.models.encoder import EncoderConfig
from effarch.models.masked_lm import MaskedLMConfig

_PREFIX = "roberta."
_PAD = 1  # id of padding; positions begin behind it


def config(fields: Fields, names: Sequence[str]) -> EncoderConfig:
    """Ours for theirs."""
    fields.only("pad_token_id", _PAD)
    length = fields.positive("max_position_embeddings", 512) - _PAD - 1
    if length < 1:
        raise UserError(f"{fields.where}: max_position_embeddings: expected at least 3, got {length + _PAD + 1}")
    found = encoder.text_encoder(fields, names, length=length, token_types=2, prefix=_PREFIX, activation="gelu")
    return found


def rules(config: EncoderConfig, names: Mapping[str, Shape]) -> list[Rule]:
    """The tensors of a model."""
    found = encoder.text_rules(config, names, _PREFIX)
    found.append(_positions(f"{_PREFIX}embeddings.position_embeddings.weight", names["positions"]))
    if isinstance(config, ClassifierConfig):
        found += decoder.projection("pooler", "classifier.dense", names)
        found += decoder.projection("head", "classifier.out_proj", names)
    elif config.pooler:
        found += decoder.projection("pooler", f"{_PREFIX}pooler.dense", names)
    if isinstance(config, MaskedLMConfig):
        found += encoder.masked_head(names, "lm_head.dense", "lm_head.layer_norm", "lm_head.bias")
    return found


def _positions(theirs: str, shape: Shape) -> Rule:
    """Their rows for padding and what stands before it are read by no token; they are written as 0."""
    first, (length, dim) = _PAD + 1, shape
    return Rule(
        ("positions",),
        (theirs,),
        ((length + first, dim),),
        lambda x: (x[first:],),
        lambda x: (np.concatenate([np.zeros((first, dim), x.dtype), x]),),
    )


def ignored(name: str, config: EncoderConfig) -> bool:
    """What older files have and says nothing, or is for a head that the model has not."""
    bare = type(config) is EncoderConfig
    return name.endswith("embeddings.position_ids") or (not bare and name.startswith(f"{_PREFIX}pooler."))


def copies(config: EncoderConfig) -> dict[str, str]:
    """Tensors that may be there once more -> of which."""
    if not isinstance(config, MaskedLMConfig):
        return {}
    return {
        "lm_head.decoder.weight": f"{_PREFIX}embeddings.word_embeddings.weight",
        "lm_head.decoder.bias": "lm_head.bias",
    }


def renamed(names: Sequence[str]) -> dict[str, str]:
    """Names as models with a head have them."""
    return decoder.renamed(names, prefix=_PREFIX)
