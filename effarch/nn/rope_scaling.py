"""Rotary wavelengths of models whose context was lengthened after pretraining.

Without scaling, pair j of W / 2 turns by ``w_j = theta^(-2j/W)`` radians per token. Each config below says what stands
in the place of w_j, as transformers computes it, and what cosine and sine are multiplied by.
"""

import math
from typing import Annotated, ClassVar

import jax.numpy as jnp
import numpy as np
import pydantic

from effarch.config import Config
from effarch.registry import Choice, register
from effarch.typing import Array, Float, Int


class RopeScaling(Config):
    """Base of the scalings. ``by_reach``: frequencies depend on how far the token's document reaches in the call."""

    by_reach: ClassVar[bool] = False

    @property
    def magnitude(self) -> float:
        """Multiplies cosine and sine, and so q . k by its square."""
        return 1.0

    def frequencies(
        self, theta: float, width: int, reach: Int[Array, "B T"] | None = None
    ) -> np.ndarray | Float[Array, "B T W/2"]:
        """Radians per token of each pair of channels.

        Args:
          theta: base of the wavelengths. width: W, channels that are rotated.
          reach: where ``by_reach``: one more than the last position of the token's document in this call.

        Raises:
          ValueError: the scaling is for another width.
        """
        raise NotImplementedError(f"{type(self).__name__} has no frequencies")


RopeScalingChoice = Annotated[RopeScaling, Choice("rope_scaling")]


def unscaled(theta: float, width: int) -> np.ndarray:
    """``theta^(-2j/W)``."""
    return theta ** (-np.arange(0, width, 2) / width)


@register("linear", kind="rope_scaling")
class LinearScaling(RopeScaling):
    """Position interpolation (2306.15595): ``w_j / factor``."""

    factor: float = pydantic.Field(1.0, gt=0, description="by which positions shrink")

    def frequencies(self, theta: float, width: int, reach: Array | None = None) -> np.ndarray:
        return unscaled(theta, width) / self.factor


@register("llama3", kind="rope_scaling")
class Llama3Scaling(RopeScaling):
    """Llama 3.1 (2407.21783): long waves are stretched by ``factor``, short ones stay, those between are blended."""

    factor: float = pydantic.Field(8.0, gt=0, description="by which the longest waves are stretched")
    low_freq_factor: float = pydantic.Field(1.0, gt=0, description="waves above original_length / this are stretched")
    high_freq_factor: float = pydantic.Field(4.0, gt=0, description="waves below original_length / this stay")
    original_length: int = pydantic.Field(8192, gt=0, description="tokens of the context before")

    @pydantic.model_validator(mode="after")
    def _ordered(self) -> "Llama3Scaling":
        if self.high_freq_factor <= self.low_freq_factor:
            raise ValueError(
                f"high_freq_factor: expected more than low_freq_factor {self.low_freq_factor:g}, "
                f"got {self.high_freq_factor:g}"
            )
        return self

    def frequencies(self, theta: float, width: int, reach: Array | None = None) -> np.ndarray:
        plain = unscaled(theta, width)
        turns = self.original_length * plain / (2 * math.pi)  # of the wave in the old context
        stays = (turns - self.low_freq_factor) / (self.high_freq_factor - self.low_freq_factor)
        stays = np.clip(stays, 0, 1)
        return stays * plain + (1 - stays) * plain / self.factor


@register("yarn", kind="rope_scaling")
class YarnScaling(RopeScaling):
    """YaRN (2309.00071): pairs that turn less than ``beta_slow`` times are stretched, above ``beta_fast`` they stay."""

    factor: float = pydantic.Field(4.0, gt=0, description="by which the longest waves are stretched")
    original_length: int = pydantic.Field(4096, gt=0, description="tokens of the context before")
    beta_fast: float = pydantic.Field(32.0, gt=0, description="turns in the old context from which a pair stays")
    beta_slow: float = pydantic.Field(1.0, gt=0, description="turns below which it is stretched by all of factor")
    truncate: bool = pydantic.Field(True, description="both ends of the blend are rounded to whole pairs")
    attention_factor: float | None = pydantic.Field(
        None, gt=0, description="of cosine and sine; null: 0.1 ln(factor) + 1"
    )

    @property
    def magnitude(self) -> float:
        return yarn_magnitude(self.factor) if self.attention_factor is None else self.attention_factor

    def frequencies(self, theta: float, width: int, reach: Array | None = None) -> np.ndarray:
        def pair(turns: float) -> float:
            return width * math.log(self.original_length / (turns * 2 * math.pi)) / (2 * math.log(theta))

        low, high = pair(self.beta_fast), pair(self.beta_slow)
        if self.truncate:
            low, high = math.floor(low), math.ceil(high)
        low, high = max(low, 0), min(high, width - 1)
        high = high + 0.001 if low == high else high
        stretched = np.clip((np.arange(width // 2) - low) / (high - low), 0, 1)
        plain = unscaled(theta, width)
        return stretched * plain / self.factor + (1 - stretched) * plain


def yarn_magnitude(factor: float, weight: float = 1.0) -> float:
    """``0.1 weight ln(factor) + 1``; 1 where nothing is stretched."""
    return 1.0 if factor <= 1 else 0.1 * weight * math.log(factor) + 1.0


class ByReach(RopeScaling):
    """Scalings that transformers chooses anew in each call.

    So a text in one piece and in several differ once it outgrows ``original_length``: keys in a cache stay as they were
    rotated. That is how such models are run, and it is not causal: in one piece, early tokens know of the length.
    """

    by_reach: ClassVar[bool] = True


@register("dynamic", kind="rope_scaling")
class DynamicScaling(ByReach):
    """Dynamic NTK: beyond ``original_length`` the base grows with the reach n.

    theta_n = theta (factor n / original_length - factor + 1)^(W / (W - 2))
    """

    factor: float = pydantic.Field(2.0, gt=0, description="how fast the base grows")
    original_length: int = pydantic.Field(2048, gt=0, description="tokens up to which nothing changes")

    def frequencies(self, theta: float, width: int, reach: Array | None = None) -> Array:
        if reach is None or width < 4:
            raise ValueError(f"rope_scaling: expected the reach and a width of 4 or more, got {reach} and {width}")
        length = jnp.maximum(reach, self.original_length).astype(jnp.float32)
        grown = (self.factor / self.original_length * length - (self.factor - 1)) ** (width / (width - 2))
        exponent = jnp.asarray(-np.arange(0, width, 2) / width, jnp.float32)
        return (theta * grown)[:, :, None] ** exponent[None, None]


@register("longrope", kind="rope_scaling")
class LongRopeScaling(ByReach):
    """LongRoPE (2402.13753), Phi-3: every pair has a factor, one for short texts and one for long ones.

    w_j / short_j up to a reach of ``original_length``, w_j / long_j beyond
    """

    short_factor: tuple[float, ...] = pydantic.Field((), description="W / 2 divisors of the frequencies")
    long_factor: tuple[float, ...] = pydantic.Field((), description="those of texts beyond original_length")
    original_length: int = pydantic.Field(4096, gt=0, description="tokens of the context before")
    attention_factor: float = pydantic.Field(1.0, gt=0, description="of cosine and sine, for texts of any length")

    @property
    def magnitude(self) -> float:
        return self.attention_factor

    def frequencies(self, theta: float, width: int, reach: Array | None = None) -> Array:
        for name, factors in (("short_factor", self.short_factor), ("long_factor", self.long_factor)):
            if len(factors) != width // 2:
                raise ValueError(f"rope_scaling.{name}: expected {width // 2} numbers, got {len(factors)}")
        if reach is None:
            raise ValueError("rope_scaling: expected the reach of each document, got none")
        short, long = (
            jnp.asarray(unscaled(theta, width) / np.asarray(f), jnp.float32)[None, None]
            for f in (self.short_factor, self.long_factor)
        )
        return jnp.where((reach > self.original_length)[:, :, None], long, short)
