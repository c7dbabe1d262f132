"""Initial decays of Mamba-2, which the gated delta rules took over: ``log a_t = -e^A softplus(x_t + dt)``."""

import math

import jax
import jax.numpy as jnp
from flax import nnx

from effarch.typing import Array


def inverse_softplus(x: Array) -> Array:
    """``y`` with ``softplus(y) = x``, for x > 0."""
    return x + jnp.log(-jnp.expm1(-x))


def step_sizes(rngs: nnx.Rngs, shape: tuple[int, ...]) -> Array:
    """Initial ``dt``: inverse softplus of step sizes log-uniform in 1e-3..0.1."""
    log_dt = jax.random.uniform(rngs.params(), shape, jnp.float32, math.log(1e-3), math.log(0.1))
    return inverse_softplus(jnp.maximum(jnp.exp(log_dt), 1e-4))


def decay_rates(
    rngs: nnx.Rngs, shape: tuple[int, ...], smallest: float = 1e-3, largest: float = 16.0
) -> tuple[Array, Array]:
    """Initial ``A``, the log of U(smallest, largest), and ``dt``, each of ``shape``."""
    rate = jax.random.uniform(rngs.params(), shape, jnp.float32, smallest, largest)
    return jnp.log(rate), step_sizes(rngs, shape)
