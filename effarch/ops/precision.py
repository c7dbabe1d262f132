"""The precision policy of the ops, in one place.

States, decay sums, softmax and inverses live in ``promote(float32, inputs)``. A product of float32 (or float64)
arrays runs at ``Precision.HIGHEST``: what TPUs and recent GPUs call float32 is not, by default. A product of two
low-precision arrays keeps them as they are and accumulates in float32.
"""

import jax
import jax.numpy as jnp
import numpy as np

from effarch.typing import Array


def accumulator(*arrays: Array) -> jnp.dtype:
    """The dtype of states and sums: float32, or float64 if any input is."""
    dtype = jnp.dtype(jnp.float32)
    for x in arrays:
        dtype = np.promote_types(dtype, x.dtype)  # jnp.promote_types refuses bfloat16 under strict promotion
    return dtype


def _product(rows: str, columns: str, a: Array, b: Array) -> Array:
    """Batched product with the contracted axis at ``x`` of the last two; batch dims of 1 broadcast."""
    dtype = accumulator(a, b)
    # Leading batch dims become one: backends lay out few dims better, and jaxlib 0.10's CPU crashes on some of many.
    same = 0
    while same < a.ndim - 2 and a.shape[same] == b.shape[same]:
        same += 1
    lead = a.shape[:same]
    a, b = (x.reshape(-1, *x.shape[same:]) for x in (a, b))
    spec = f"...{rows},...{columns}->...ij"
    if a.dtype == b.dtype and a.dtype != dtype:
        product = jnp.einsum(spec, a, b, preferred_element_type=dtype)
    else:
        product = jnp.einsum(spec, a.astype(dtype), b.astype(dtype), precision=jax.lax.Precision.HIGHEST)
    return product.reshape(*lead, *product.shape[1:])


def dot(a: Array, b: Array) -> Array:
    """Batched matrix product ``a @ b`` under the policy above, in the accumulator's dtype.

    Batch dims of 1 broadcast.
    """
    return _product("ix", "xj", a, b)


def dot_nt(a: Array, b: Array) -> Array:
    """``a @ b^T``, as :func:`dot`; said as one product, compilers need no transposed copy."""
    return _product("ix", "jx", a, b)


def dot_tn(a: Array, b: Array) -> Array:
    """``a^T @ b``, as :func:`dot_nt`."""
    return _product("xi", "xj", a, b)
