"""Rotary position embedding (2104.09864); angles always in float32."""

import jax.numpy as jnp

from effarch.nn.rope_scaling import RopeScaling, unscaled
from effarch.ops.precision import accumulator
from effarch.typing import Array, Float, Int


def rotate(
    x: Float[Array, "B T H K"],
    positions: Int[Array, "B T"],
    theta: float = 10000.0,
    *,
    fraction: float = 1.0,
    scaling: RopeScaling | None = None,
    reach: Int[Array, "B T"] | None = None,
) -> Float[Array, "B T H K"]:
    """Rotates the halves of the last axis: channels (j, j + K/2) by ``position * theta^(-2j/K)``.

    Args:
      x: queries or keys, K even.
      positions: of each token in its document; B may be 1.
      theta: base of the wavelengths.
      fraction: of the channels that is rotated, in (0, 1]: the first ``fraction * K``, which take K's place above.
      scaling: what stands in the place of the frequencies; None: nothing.
      reach: for a scaling that wants it (``by_reach``), see ``RopeScaling.frequencies``; B and T may be 1.

    Raises:
      ValueError: the number of rotated channels is odd or 0, or does not fit the scaling.
    """
    width = int(x.shape[-1] * fraction)
    if width % 2 or not width:
        of = "" if fraction == 1 else f" * rope_fraction {fraction}"
        raise ValueError(f"head_dim: expected head_dim{of} to be even for rotary positions, got {width}")
    if width < x.shape[-1]:
        turned = rotate(x[..., :width], positions, theta, scaling=scaling, reach=reach)
        return jnp.concatenate([turned, x[..., width:]], axis=-1)
    dtype = accumulator(x)
    frequencies = unscaled(theta, width) if scaling is None else scaling.frequencies(theta, width, reach)
    frequency = jnp.asarray(frequencies, dtype)
    frequency = frequency[:, :, None] if frequency.ndim == 3 else frequency[None, None, None, :]
    angle = positions.astype(dtype)[..., None, None] * frequency
    cos, sin = jnp.cos(angle), jnp.sin(angle)
    if scaling is not None and scaling.magnitude != 1:
        cos, sin = cos * scaling.magnitude, sin * scaling.magnitude
    left, right = jnp.split(x.astype(dtype), 2, axis=-1)
    return jnp.concatenate([left * cos - right * sin, right * cos + left * sin], axis=-1).astype(x.dtype)
