"""Softmax attention by the Nystrom method (2102.03902): T x T scores from their rows and columns at m landmarks.

    o = softmax(q k~^T) Z softmax(q~ k^T) v        Z ~ softmax(q~ k~^T)^+        q~, k~: means of m segments of time

Not causal. O(T m) time and memory.
"""

import jax
import jax.numpy as jnp

from effarch.ops.attention.reference import dot
from effarch.ops.precision import accumulator
from effarch.typing import Array, Float

ITERATIONS = 6


def segment_means(x: Float[Array, "B T H K"], count: int) -> Float[Array, "B M H K"]:
    """Means over ``count`` stretches of time as even as can be: token t is in stretch ``floor(t count / T)``."""
    time = x.shape[1]
    segment = jnp.arange(time, dtype=jnp.int32) * count // time
    member = (segment[:, None] == jnp.arange(count, dtype=jnp.int32)[None]).astype(accumulator(x))
    means = dot("bthk,tm->bmhk", x, member / member.sum(axis=0, keepdims=True))
    return means.astype(x.dtype)


def pseudo_inverse(a: Float[Array, "... M M"], iterations: int = ITERATIONS) -> Float[Array, "... M M"]:
    """The Moore-Penrose inverse of a matrix of softmax rows, by iteration of third order (the paper's equation 11).

    ``Z_0 = a^T / (max column sum * max row sum)``. The authors' code takes the maximum column sum over the whole batch
    and all heads, so that a row's result depends on the others; the paper and we take it of each matrix.
    """
    eye = jnp.eye(a.shape[-1], dtype=a.dtype).reshape((1,) * (a.ndim - 2) + a.shape[-2:])

    def product(x: Array, y: Array) -> Array:
        return jnp.matmul(x, y, precision=jax.lax.Precision.HIGHEST)

    columns, rows = jnp.abs(a).sum(axis=-2), jnp.abs(a).sum(axis=-1)
    z = jnp.swapaxes(a, -1, -2) / (columns.max(axis=-1) * rows.max(axis=-1))[..., None, None]
    for _ in range(iterations):
        az = product(a, z)
        z = product(0.25 * z, 13.0 * eye - product(az, 15.0 * eye - product(az, 7.0 * eye - az)))
    return z


def nystrom_attention(
    q: Float[Array, "B T H K"], k: Float[Array, "B T H K"], v: Float[Array, "B T H V"], *, landmarks: int
) -> Float[Array, "B T H V"]:
    """Attention through landmarks; softmax attention itself where T is at most ``landmarks``.

    Args:
      q, k, v: queries, keys, values. Scores are ``q . k / sqrt(K)``.
      landmarks: m, how many means of queries and keys stand for them.
    """
    scale = q.shape[-1] ** -0.5

    def weights(a: Array, b: Array) -> Array:
        return jax.nn.softmax(dot("bthk,bshk->bhts", a, b) * scale, axis=-1)

    def read(w: Array, values: Array) -> Array:
        return dot("bhts,bshv->bthv", w.astype(values.dtype), values)

    if q.shape[1] <= landmarks:
        return read(weights(q, k), v).astype(v.dtype)
    q_mean, k_mean = segment_means(q, landmarks), segment_means(k, landmarks)
    seen = read(weights(q_mean, k), v)  # what each landmark sees, [B, M, H, V]
    mixed = dot("bhmn,bnhv->bmhv", pseudo_inverse(weights(q_mean, k_mean)), seen)
    return read(weights(q, k_mean), mixed).astype(v.dtype)
