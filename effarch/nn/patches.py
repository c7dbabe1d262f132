"""Images as sequences: every patch one token (2010.11929)."""

import jax.numpy as jnp
from einops import rearrange
from flax import nnx

from effarch.nn.linear import Linear
from effarch.typing import Array, Float


class PatchEmbedding(nnx.Module):
    """``[B, height, width, channels] -> [B, T, D]``: a linear map, with bias, of each square patch, row by row.

    Args:
      patch: side of a patch, in pixels. channels: of a pixel. dim: width D.
    """

    def __init__(self, patch: int, channels: int, dim: int, *, rngs: nnx.Rngs) -> None:
        self.patch, self.channels = patch, channels
        self.linear = Linear(patch * patch * channels, dim, axes=(None, "embed"), bias=True, rngs=rngs)

    def __call__(self, images: Float[Array, "B height width channels"], dtype: jnp.dtype) -> Float[Array, "B T D"]:
        """Embeddings in ``dtype``. Raises ``ValueError`` where patches do not tile the images."""
        p, shape = self.patch, images.shape
        if len(shape) != 4 or shape[1] % p or shape[2] % p or shape[3] != self.channels:
            raise ValueError(
                f"images: expected [B, height, width, {self.channels}] with sides that {p} divides, got {list(shape)}"
            )
        return self.linear(rearrange(images.astype(dtype), "b (h p) (w q) c -> b (h w) (p q c)", p=p, q=p))
