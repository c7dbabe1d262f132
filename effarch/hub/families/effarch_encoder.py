"""Our own format of encoders with any mixers: what students of BERT and ViT go out in.

``config.json`` holds ``"model_type": "effarch_encoder"``, ``"format_version": 1``, the head under ``"architectures"``
(``Encoder``, ``MaskedLM`` or ``Classifier``) and, under ``"model"``, the model's config as JSON. Tensors as in
:mod:`effarch.hub.families.effarch`.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from effarch.config import UserError
from effarch.hub.families.effarch import VERSION
from effarch.hub.fields import Fields
from effarch.hub.rules import Rule, Shape, same
from effarch.models.classifier import ClassifierConfig
from effarch.models.encoder import EncoderConfig
from effarch.models.masked_lm import MaskedLMConfig

_HEADS: dict[str, type[EncoderConfig]] = {
    "Encoder": EncoderConfig,
    "MaskedLM": MaskedLMConfig,
    "Classifier": ClassifierConfig,
}


def config(fields: Fields, names: Sequence[str]) -> EncoderConfig:
    """What was written."""
    fields.only("format_version", VERSION)
    found = fields.take("architectures", list)
    if len(found) != 1 or found[0] not in _HEADS:
        raise UserError(f"{fields.where}: architectures: expected one of {', '.join(_HEADS)}, got {found}")
    return _HEADS[found[0]].model_validate(fields.take("model", dict))


def rules(config: EncoderConfig, names: Mapping[str, Shape]) -> list[Rule]:
    """Every variable as it is."""
    return [same(name, name, shape) for name, shape in names.items()]


def ignored(name: str, config: EncoderConfig) -> bool:
    """No tensor says nothing."""
    return False


def copies(config: EncoderConfig) -> dict[str, str]:
    """Every tensor is there once."""
    return {}


def renamed(names: Sequence[str]) -> dict[str, str]:
    """No tensor has another name."""
    return {}


def export(config: EncoderConfig) -> dict[str, Any]:
    """The ``config.json`` of any encoder."""
    (head,) = (name for name, kind in _HEADS.items() if type(config) is kind)
    return {
        "architectures": [head],
        "model_type": "effarch_encoder",
        "format_version": VERSION,
        "model": config.model_dump(mode="json"),
        "torch_dtype": config.param_dtype,
    }
