"""Initial decays of Mamba-2, which the gated delta rules took over: ``log a_t = -e^A softplus(x_t + dt)``."""

import math

import jax
import jax.numpy as jnp
from flax import nnx

from effarch.ops.channels import over_tokens
from effarch.ops.precision import accumulator
from effarch.typing import Array, Float


def inverse_softplus(x: Array) -> Array:
    """``y`` with ``softplus(y) = x``, for x > 0."""
    return x + jnp.log(-jnp.expm1(-x))


def step_sizes(rngs: nnx.Rngs, shape: tuple[int, ...]) -> Array:
    """Initial ``dt``: inverse softplus of step sizes log-uniform in 1e-3..0.1."""
    log_dt = jax.random.uniform(rngs.params(), shape, jnp.float32, math.log(1e-3), math.log(0.1))
    return inverse_softplus(jnp.maximum(jnp.exp(log_dt), 1e-4))


def log_rates(rngs: nnx.Rngs, shape: tuple[int, ...], smallest: float = 1e-3, largest: float = 16.0) -> Array:
    """Initial ``A``: the log of U(smallest, largest)."""
    return jnp.log(jax.random.uniform(rngs.params(), shape, jnp.float32, smallest, largest))


def decay_rates(
    rngs: nnx.Rngs, shape: tuple[int, ...], smallest: float = 1e-3, largest: float = 16.0
) -> tuple[Array, Array]:
    """Initial ``A`` and ``dt``, each of ``shape``."""
    return log_rates(rngs, shape, smallest, largest), step_sizes(rngs, shape)


def softplus_decay(y: Float[Array, "B T H ..."], log_rate: nnx.Param, dt_bias: nnx.Param) -> Float[Array, "B T H ..."]:
    """``log a = -e^A softplus(y + dt)``, natural logarithms in promote(float32, y).

    Args:
      y: what the token says. log_rate: A, one per head. dt_bias: dt, of the shape of a token's y.
    """
    y = y.astype(accumulator(y))
    step = jax.nn.softplus(y + over_tokens(dt_bias[...], y))
    return -over_tokens(per_head(jnp.exp(log_rate[...].astype(step.dtype)), dt_bias.shape), step) * step


def per_head(x: Float[Array, " H"], shape: tuple[int, ...]) -> Float[Array, "H ..."]:
    """One value per head for all of a head's channels: ``[H] -> shape``, whose first axis is H."""
    return jnp.broadcast_to(x.reshape(x.shape + (1,) * (len(shape) - 1)), shape)
