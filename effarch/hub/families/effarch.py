"""Our own format: any language model there is, hybrids too; what architectures without a format elsewhere go out in.

``config.json`` holds ``"model_type": "effarch"``, ``"format_version": 1`` and, under ``"model"``, the model's config as
JSON. A tensor is called as our variable, layers counted from 0 however the stack holds them
(``layers.3.mixer.qkv.q.kernel``), and has its shape; what is not trained (fixed decays, random features) is there, too.
Encoders: ``effarch_encoder``.
"""

from collections.abc import Mapping
from typing import Any

from effarch.hub.fields import Fields
from effarch.hub.rules import Rule, Shape, same
from effarch.models.lm import LMConfig

VERSION = 1


def config(fields: Fields) -> LMConfig:
    """What was written."""
    fields.only("format_version", VERSION)
    return LMConfig.model_validate(fields.take("model", dict))


def rules(config: LMConfig, names: Mapping[str, Shape]) -> list[Rule]:
    """Every variable as it is."""
    return [same(name, name, shape) for name, shape in names.items()]


def ignored(name: str) -> bool:
    """No tensor says nothing."""
    return False


def export(config: LMConfig) -> dict[str, Any]:
    """The ``config.json`` of any model."""
    return {
        "architectures": ["LM"],
        "model_type": "effarch",
        "format_version": VERSION,
        "model": config.model_dump(mode="json"),
        "torch_dtype": config.param_dtype,
    }
