"""Where the gradient of a value is finished before it is used: a boundary for the compiler's fusions."""

import jax

from effarch.typing import Array


@jax.custom_vjp
def apart(x: Array) -> Array:
    """``x``; its gradient is written to memory once, before whatever comes before ``x`` reads it.

    For gradients that are sums of many terms: the backward pass of a projection reads its gradient several times,
    transposed, and XLA on CPU would form the sum anew each time, column by column.
    """
    return x


def _forward(x: Array) -> tuple[Array, None]:
    return x, None


def _backward(_: None, cotangent: Array) -> tuple[Array]:
    return (jax.lax.optimization_barrier(cotangent),)


apart.defvjp(_forward, _backward)
