"""Interpolation between a token and the one before it, per channel: the token shift of RWKV."""

from flax import nnx

from effarch.ops.channels import over_tokens
from effarch.typing import Array, Float


def lerp(x: Float[Array, "B T D"], previous: Float[Array, "B T D"], mix: nnx.Param) -> Float[Array, "B T D"]:
    """``x + (previous - x) * mix``: mix 0 is no shift, 1 is the token before (RWKV-4 and 5 store 1 - mix)."""
    return x + (previous - x) * over_tokens(mix[...], x)
