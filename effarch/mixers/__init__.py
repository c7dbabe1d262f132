"""Sequence mixers and channel mixers, one file per architecture. Importing the package registers them all."""

from effarch.mixers.base import Context, LayerInfo, Mixer, MixerConfig, Progress
from effarch.registry import discover

__all__ = ["Context", "LayerInfo", "Mixer", "MixerConfig", "Progress"]

discover(__name__)
