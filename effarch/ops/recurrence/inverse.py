"""Unit lower triangular systems, solved by halves: matrix products only, no row-by-row solve."""

import jax
import jax.numpy as jnp

from effarch.ops.precision import dot
from effarch.typing import Array, Float

_ROWS = 8  # below this size, forward substitution on vectors beats products of tiny matrices


def _substitute(a: Array) -> Array:
    n = a.shape[-1]
    eye = jnp.eye(n, dtype=a.dtype)
    rows: list[Array] = []
    for i in range(n):
        row = jnp.broadcast_to(eye[i], a.shape[:-2] + (n,))
        for j, earlier in enumerate(rows):
            row = row - a[..., i, j, None] * earlier
        rows.append(row)
    return jnp.stack(rows, axis=-2)


def _invert(a: Array) -> Array:
    n = a.shape[-1]
    if n <= _ROWS or n % 2:
        return _substitute(a)
    half = n // 2
    halves = _invert(jnp.stack([a[..., :half, :half], a[..., half:, half:]], axis=-3))  # both halves in one batch
    upper, lower = halves[..., 0, :, :], halves[..., 1, :, :]
    corner = -dot(lower, dot(a[..., half:, :half], upper))
    return jnp.concatenate(
        [
            jnp.concatenate([upper, jnp.zeros_like(upper)], axis=-1),
            jnp.concatenate([corner, lower], axis=-1),
        ],
        axis=-2,
    )


@jax.custom_jvp
def unit_lower_solve(a: Float[Array, "*Z C C"], rhs: Float[Array, "*Z C V"]) -> Float[Array, "*Z C V"]:
    """``(I + a)^-1 rhs`` for strictly lower triangular ``a``; what stands on and above the diagonal is not read.

    By the inverse, whose halves are ``[[X1, 0], [-X2 a21 X1, X2]]``: stable where powers of ``a`` overflow. float32 or
    float64, HIGHEST precision. The gradients need the inverse and the solution only, two products.
    """
    return dot(_invert(a), rhs)


@unit_lower_solve.defjvp
def _unit_lower_solve_jvp(primals, tangents):
    (a, rhs), (a_dot, rhs_dot) = primals, tangents
    inverse = _invert(a)
    solution = dot(inverse, rhs)
    return solution, dot(inverse, rhs_dot - dot(jnp.tril(a_dot, -1), solution))
