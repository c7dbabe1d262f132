"""Formats of checkpoints: one file per family, found by ``model_type``.

A family is a module with ``config(fields) -> LMConfig`` and ``rules(config, names) -> list[Rule]``;
one whose tensors go by several names has ``renamed(names) -> {theirs: the one that its rules know}``, and one that is
written, too, has ``export(config) -> dict``, the ``config.json`` of a model, or None where it has no place
for it.
"""

import importlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol, cast

from effarch.config import UserError, did_you_mean
from effarch.hub.fields import Fields
from effarch.hub.rules import Rule, Shape
from effarch.models.encoder import EncoderConfig
from effarch.models.lm import LMConfig

#: model_type -> module
_FAMILIES = {
    "delta_net": "fla_delta",
    "effarch": "effarch",
    "gated_deltanet": "fla_delta",
    "gemma2": "gemma2",
    "gemma3": "gemma3",
    "gemma3_text": "gemma3",
    "gla": "fla_linear",
    "gpt2": "gpt2",
    "gpt_neox": "gpt_neox",
    "llama": "llama",
    "mamba": "mamba1",
    "mamba2": "mamba2",
    "mistral": "mistral",
    "phi3": "phi3",
    "qwen2": "qwen2",
    "qwen3": "qwen3",
    "retnet": "fla_linear",
    "rwkv": "rwkv4",
    "rwkv7": "fla_rwkv7",
    "smollm3": "smollm3",
}

#: model_type of an encoder -> module
_ENCODERS = {"bert": "bert", "effarch_encoder": "effarch_encoder", "roberta": "roberta", "vit": "vit"}

#: library -> modules of the families that are written for it
WRITTEN = {
    "effarch": ("effarch",),
    "fla": ("fla_linear", "fla_delta", "fla_rwkv7"),
    "transformers": ("llama", "mistral", "qwen2", "qwen3", "mamba1", "mamba2"),
}


class Format(Protocol):
    """Which tensors a model has."""

    rules: Callable[[LMConfig, Mapping[str, Shape]], list[Rule]]
    ignored: Callable[[str], bool]


class Family(Format, Protocol):
    """What a family's module has."""

    config: Callable[[Fields], LMConfig]


class Written(Family, Protocol):
    """A family that is written, too."""

    export: Callable[[LMConfig], dict[str, Any] | None]


class EncoderFamily(Protocol):
    """What the module of a family of encoders has; see ``families.encoder``."""

    config: Callable[[Fields, Sequence[str]], EncoderConfig]
    rules: Callable[[EncoderConfig, Mapping[str, Shape]], list[Rule]]
    ignored: Callable[[str, EncoderConfig], bool]
    copies: Callable[[EncoderConfig], dict[str, str]]
    renamed: Callable[[Sequence[str]], dict[str, str]]


def family(model_type: str, where: str) -> Family:
    """The format of a model type.

    Raises:
      UserError: none of that name.
    """
    if model_type in _ENCODERS:
        raise UserError(f"{where}: model_type: {model_type} is an encoder: effarch.hub.load_encoder reads it")
    if model_type not in _FAMILIES:
        known = ", ".join(sorted(_FAMILIES))
        raise UserError(
            f"{where}: model_type: expected one of {known}, got {model_type!r}{did_you_mean(model_type, _FAMILIES)}"
        )
    return cast(Family, importlib.import_module(f"effarch.hub.families.{_FAMILIES[model_type]}"))


def is_encoder(model_type: str) -> bool:
    """Whether a model type is that of an encoder."""
    return model_type in _ENCODERS


def encoder_family(model_type: str, where: str) -> EncoderFamily:
    """The format of an encoder's model type. Raises ``UserError`` where there is none of that name."""
    if model_type not in _ENCODERS:
        known = ", ".join(_ENCODERS)
        raise UserError(
            f"{where}: model_type: expected an encoder ({known}), got {model_type!r}"
            f"{did_you_mean(model_type, _ENCODERS)}"
        )
    return cast(EncoderFamily, importlib.import_module(f"{__name__}.{_ENCODERS[model_type]}"))


def written_for(library: str) -> list[Written]:
    """The formats of a library of :data:`WRITTEN` that are written."""
    return [cast(Written, importlib.import_module(f"{__name__}.{name}")) for name in WRITTEN[library]]


def known_types() -> tuple[str, ...]:
    """Every ``model_type`` that is read."""
    return tuple(sorted(_FAMILIES))


def model_type(data: Mapping[str, Any], where: str) -> str:
    """The ``model_type`` of a ``config.json``."""
    found = data.get("model_type")
    if not isinstance(found, str):
        raise UserError(f"{where}: model_type: expected the name of an architecture, got {found!r}")
    return found
