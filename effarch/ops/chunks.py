"""Rows cut into chunks, for a scan over them."""

import math

import jax.numpy as jnp

from effarch.typing import Array


def in_chunks(x: Array, size: int) -> Array:
    """``[B, T, ...]`` as ``[N, B, size, ...]``; N covers T, zeros at the end are what ops take for padding."""
    batch, time, *rest = x.shape
    count = math.ceil(time / size)
    x = jnp.pad(x, [(0, 0), (0, count * size - time)] + [(0, 0)] * len(rest))
    return jnp.moveaxis(x.reshape(batch, count, size, *rest), 1, 0)
