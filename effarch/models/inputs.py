"""What an encoder reads: images as patches, or token ids."""

from typing import Any, Self

import pydantic
from flax import nnx

from effarch.config import Config
from effarch.nn.embedding import Embedding
from effarch.nn.patches import PatchEmbedding
from effarch.registry import register


class InputConfig(Config):
    """Base of what an encoder reads, chosen by ``type``."""

    @property
    def tokens(self) -> int:
        """Tokens of a row, at most."""
        raise NotImplementedError(f"{type(self).__name__} has no tokens")

    def make(self, dim: int, rngs: nnx.Rngs) -> Any:
        """The module ``(inputs, dtype) -> [B, T, D]``."""
        raise NotImplementedError(f"{type(self).__name__} has no make")


@register("patches", kind="input")
class Patches(InputConfig):
    """Images ``[B, height, width, channels]``, a token per patch; with ``patch: 1`` per pixel."""

    height: int = pydantic.Field(224, gt=0, description="of an image, pixels")
    width: int = pydantic.Field(224, gt=0, description="of an image, pixels")
    channels: int = pydantic.Field(3, gt=0, description="of a pixel")
    patch: int = pydantic.Field(16, gt=0, description="side of a patch, pixels; divides height and width")

    @pydantic.model_validator(mode="after")
    def _tiled(self) -> Self:
        if self.height % self.patch or self.width % self.patch:
            raise ValueError(f"patch: expected a divisor of {self.height} and {self.width}, got {self.patch}")
        return self

    @property
    def tokens(self) -> int:
        """One per patch."""
        return (self.height // self.patch) * (self.width // self.patch)

    def make(self, dim: int, rngs: nnx.Rngs) -> PatchEmbedding:
        return PatchEmbedding(self.patch, self.channels, dim, rngs=rngs)


@register("ids", kind="input")
class Ids(InputConfig):
    """Token ids ``[B, T]``."""

    vocab_size: int = pydantic.Field(258, gt=0, description="rows of the embedding; 258 for bytes")
    length: int = pydantic.Field(1024, gt=0, description="tokens of the longest row")
    token_types: int = pydantic.Field(
        0, ge=0, description="kinds of tokens, each with a learned vector (BERT: first text, second); 0: none"
    )

    @property
    def tokens(self) -> int:
        """The longest row's."""
        return self.length

    def make(self, dim: int, rngs: nnx.Rngs) -> Embedding:
        return Embedding(self.vocab_size, dim, rngs=rngs)
