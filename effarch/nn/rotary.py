"""Rotary position embedding (2104.09864); angles always in float32."""

import jax.numpy as jnp
import numpy as np

from effarch.ops.precision import accumulator
from effarch.typing import Array, Float, Int


def rotate(
    x: Float[Array, "B T H K"], positions: Int[Array, "B T"], theta: float = 10000.0, *, fraction: float = 1.0
) -> Float[Array, "B T H K"]:
    """Rotates the halves of the last axis: channels (j, j + K/2) by ``position * theta^(-2j/K)``.

    Args:
      x: queries or keys, K even.
      positions: of each token in its document; B may be 1.
      theta: base of the wavelengths.
      fraction: of the channels that is rotated, in (0, 1]: the first ``fraction * K``, which take K's place above.

    Raises:
      ValueError: the number of rotated channels is odd or 0.
    """
    width = int(x.shape[-1] * fraction)
    if width % 2 or not width:
        of = "" if fraction == 1 else f" * rope_fraction {fraction}"
        raise ValueError(f"head_dim: expected head_dim{of} to be even for rotary positions, got {width}")
    if width < x.shape[-1]:
        return jnp.concatenate([rotate(x[..., :width], positions, theta), x[..., width:]], axis=-1)
    dtype = accumulator(x)
    frequency = jnp.asarray(theta ** (-np.arange(0, width, 2) / width), dtype)
    angle = positions.astype(dtype)[..., None, None] * frequency[None, None, None, :]
    cos, sin = jnp.cos(angle), jnp.sin(angle)
    left, right = jnp.split(x.astype(dtype), 2, axis=-1)
    return jnp.concatenate([left * cos - right * sin, right * cos + left * sin], axis=-1).astype(x.dtype)
