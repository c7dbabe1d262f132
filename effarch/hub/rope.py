"""Rotary positions in somebody's config, in the spelling of transformers 5 (``rope_parameters``) and the older one."""

import dataclasses
import math
from collections.abc import Callable, Mapping
from typing import Any

from effarch.config import UserError
from effarch.hub.fields import Fields
from effarch.mixers.softmax_attention import SoftmaxAttention
from effarch.nn.rope_scaling import (
    DynamicScaling,
    LinearScaling,
    Llama3Scaling,
    LongRopeScaling,
    RopeScaling,
    YarnScaling,
    yarn_magnitude,
)


@dataclasses.dataclass(frozen=True)
class Rope:
    """Rotary positions as our attention has them.

    Attributes:
      theta: base of the wavelengths. scaling: of them, or None. fraction: of a head's channels that is rotated.
    """

    theta: float
    scaling: RopeScaling | None
    fraction: float

    @property
    def options(self) -> dict[str, Any]:
        """Fields of an attention config."""
        return {"rope_theta": self.theta, "rope_scaling": self.scaling, "rope_fraction": self.fraction}


def rope(
    fields: Fields,
    *,
    theta: float = 10000.0,
    fraction: float = 1.0,
    old_theta: str = "rope_theta",
    old_fraction: str | None = None,
    original: int | None = None,
    called: Mapping[str, str] | None = None,
) -> Rope:
    """The rotary positions of a model, one kind for all layers.

    Args:
      fields: of the config. theta, fraction: where it does not say.
      old_theta, old_fraction: names of top-level fields; without the latter, all channels are rotated.
      original: the context before scaling, where the family has a field of its own for it.
      called: other names of scalings: "su" -> "longrope".

    Raises:
      UserError: two spellings are there and differ; a scaling that is not supported.
    """
    merged: dict[str, Any] = {}
    for name in ("rope_parameters", "rope_scaling"):
        part = {key: value for key, value in fields.take(name, dict, {}).items() if value is not None}
        for key in part.keys() & merged.keys():
            if merged[key] != part[key]:
                one, other = f"{name}.{key} {part[key]!r}", f"rope_parameters.{key} {merged[key]!r}"
                raise UserError(f"{fields.where}: {one} contradicts {other}")
        merged |= part
    tops = {"rope_theta": old_theta} | ({} if old_fraction is None else {"partial_rotary_factor": old_fraction})
    for inside, top in tops.items():
        value = fields.take(top, float, None)
        if value is not None and merged.setdefault(inside, value) != value:
            raise UserError(f"{fields.where}: {top} {value!r} contradicts rope_parameters.{inside} {merged[inside]!r}")
    part = Fields(merged, f"{fields.where}: rope_parameters")
    found = one_rope(part, fields, theta=theta, fraction=fraction, original=original, called=called)
    if old_fraction is None and found.fraction != 1:
        raise UserError(f"{part.where}: partial_rotary_factor: expected 1 in this family, got {found.fraction:g}")
    return found


def one_rope(
    part: Fields,
    fields: Fields,
    *,
    theta: float,
    fraction: float = 1.0,
    original: int | None = None,
    called: Mapping[str, str] | None = None,
) -> Rope:
    """What one mapping of rotary parameters says, all of its keys taken; ``fields``: the config around it."""
    name = part.take("rope_type", str, "default", old="type")
    name = (called or {}).get(name, name)
    if name not in ("default", *_SCALINGS):
        known = ", ".join(("default", *_SCALINGS))
        raise UserError(f"{part.where}: rope_type: expected one of {known}, got {name!r}, which is not supported")
    found = Rope(
        part.take("rope_theta", float, theta),
        None if name == "default" else _SCALINGS[name](part, fields, original),
        part.take("partial_rotary_factor", float, fraction),
    )
    part.finish()
    return found


def _linear(part: Fields, fields: Fields, original: int | None) -> RopeScaling:
    return LinearScaling(factor=part.take("factor", float))


def _dynamic(part: Fields, fields: Fields, original: int | None) -> RopeScaling:
    return DynamicScaling(factor=part.take("factor", float), original_length=_longest(fields))


def _llama3(part: Fields, fields: Fields, original: int | None) -> RopeScaling:
    return Llama3Scaling(
        factor=part.take("factor", float),
        low_freq_factor=part.take("low_freq_factor", float),
        high_freq_factor=part.take("high_freq_factor", float),
        original_length=_original(part, fields, original),
    )


def _yarn(part: Fields, fields: Fields, original: int | None) -> RopeScaling:
    length = _original(part, fields, original)
    factor = part.take("factor", float, None)
    factor = _longest(fields) / length if factor is None else factor
    magnitude = part.take("attention_factor", float, None)
    above, below = (part.take(name, float, 0.0) for name in ("mscale", "mscale_all_dim"))
    if magnitude is None and above and below:
        magnitude = yarn_magnitude(factor, above) / yarn_magnitude(factor, below)
    return YarnScaling(
        factor=factor,
        original_length=length,
        beta_fast=part.take("beta_fast", float, 32.0) or 32.0,  # as transformers has it: 0 is the default, too
        beta_slow=part.take("beta_slow", float, 1.0) or 1.0,
        truncate=part.take("truncate", bool, True),
        attention_factor=magnitude,
    )


def _longrope(part: Fields, fields: Fields, original: int | None) -> RopeScaling:
    length = _original(part, fields, original)
    factor = part.take("factor", float, None)
    magnitude = part.take("attention_factor", float, None)
    if magnitude is None:
        factor = _longest(fields) / length if factor is None else factor
        magnitude = 1.0 if factor <= 1 or length == 1 else math.sqrt(1 + math.log(factor) / math.log(length))
    short, long = (tuple(part.take(name, list)) for name in ("short_factor", "long_factor"))
    for name, factors in (("short_factor", short), ("long_factor", long)):
        if not all(isinstance(x, int | float) and not isinstance(x, bool) and x > 0 for x in factors):
            raise UserError(f"{part.where}: {name}: expected numbers above 0, got {list(factors)}")
    return LongRopeScaling(short_factor=short, long_factor=long, original_length=length, attention_factor=magnitude)


_SCALINGS: dict[str, Callable[[Fields, Fields, int | None], RopeScaling]] = {
    "linear": _linear,
    "dynamic": _dynamic,
    "llama3": _llama3,
    "yarn": _yarn,
    "longrope": _longrope,
}


def _longest(fields: Fields) -> int:
    return fields.positive("max_position_embeddings")


def _original(part: Fields, fields: Fields, original: int | None) -> int:
    """The context before scaling: the family's own field comes first, as in transformers."""
    inside = part.positive("original_max_position_embeddings", None)
    if original is not None:
        return original
    return _longest(fields) if inside is None else inside


def exported(mixer: SoftmaxAttention) -> dict[str, Any]:
    """Their fields for ours, in both spellings; reading them gives ours again."""
    theta, scaling = mixer.rope_theta, mixer.rope_scaling
    if scaling is None:
        return {"rope_theta": theta, "rope_parameters": {"rope_type": "default", "rope_theta": theta}}
    values: dict[str, Any] = scaling.model_dump(exclude_none=True)
    name, length = values.pop("type"), values.pop("original_length", None)
    said = {"rope_type": name, **values}
    top: dict[str, Any] = {}
    if isinstance(scaling, DynamicScaling):
        top["max_position_embeddings"] = length
    elif length is not None:
        said["original_max_position_embeddings"] = length
        top["max_position_embeddings"] = round(length * values.get("factor", 1.0))
    if isinstance(scaling, LongRopeScaling):
        said |= {name: list(said[name]) for name in ("short_factor", "long_factor")}
    return {**top, "rope_theta": theta, "rope_scaling": said, "rope_parameters": {**said, "rope_theta": theta}}
