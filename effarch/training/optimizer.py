"""AdamW with global-norm clipping, linear warm-up and cosine decay."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import optax
from jax.typing import ArrayLike
from pydantic import Field

from effarch.config import Config, UserError
from effarch.parallel.sharding import is_variable
from effarch.typing import Array, Float, PyTree

Schedule = Callable[[ArrayLike], Float[Array, ""]]


class OptimizerConfig(Config):
    """AdamW (arXiv 1711.05101), its schedule, and gradient clipping."""

    learning_rate: float = Field(1e-3, gt=0, description="peak learning rate, after warm-up")
    warmup_steps: int = Field(0, ge=0, description="steps of linear warm-up; the first already moves")
    warmup_fraction: float = Field(0.0, ge=0, le=1, description="further warm-up, as a part of all steps")
    decay_fraction: float = Field(
        1.0, ge=0, le=1, description="of the steps after warm-up, the last, in which the cosine falls; constant before"
    )
    final_fraction: float = Field(
        0.1, ge=0, le=1, description="learning rate at the end of the cosine, as a part of the peak"
    )
    b1: float = Field(0.9, ge=0, lt=1, description="decay of the first moment, per step")
    b2: float = Field(0.95, ge=0, lt=1, description="decay of the second moment, per step")
    eps: float = Field(1e-8, gt=0, description="added to the root of the second moment")
    weight_decay: float = Field(0.1, ge=0, description="decoupled decay of matrices, as a part of the learning rate")
    clip_norm: float = Field(1.0, gt=0, description="largest global norm of the gradient")


def make_schedule(config: OptimizerConfig, steps: int) -> Schedule:
    """Learning rate of update n, from 0: linear to the peak, constant, cosine to ``final_fraction`` of it at ``steps``.

    With a ``decay_fraction`` of 1, as it is unless said otherwise, nothing is constant; with 0.1 this is
    warmup-stable-decay (2404.06395).
    """
    warmup = config.warmup_steps + round(config.warmup_fraction * steps)
    if warmup > steps:
        asked = f"{config.warmup_steps}" if not config.warmup_fraction else f"{warmup}, warmup_fraction included"
        raise UserError(f"warmup_steps: expected at most steps = {steps}, got {asked}")
    stable = round((1 - config.decay_fraction) * (steps - warmup))

    def schedule(count: ArrayLike) -> Float[Array, ""]:
        n = jnp.asarray(count, jnp.float32)
        warm = jnp.minimum((n + 1) / max(warmup, 1), 1)
        decayed = jnp.clip((n - warmup - stable) / max(steps - warmup - stable, 1), 0, 1)
        cosine = 0.5 * (1 + jnp.cos(jnp.pi * decayed))
        return config.learning_rate * warm * (config.final_fraction + (1 - config.final_fraction) * cosine)

    return schedule


def decay_mask(params: PyTree) -> PyTree:
    """True for matrices: at least two logical axes, so that neither biases nor gains of stacked layers decay."""

    def is_matrix(variable: PyTree) -> PyTree:
        if not is_variable(variable):
            return variable.ndim >= 2
        names = variable.get_metadata("axes", None)
        return variable.replace((variable.get_value().ndim if names is None else len(names)) >= 2)

    return jax.tree.map(is_matrix, params, is_leaf=is_variable)


def make_optimizer(config: OptimizerConfig, steps: int) -> tuple[optax.GradientTransformation, Schedule]:
    """The optimizer, and its schedule for the log.

    Args:
      config: its settings.
      steps: updates in the whole run; where the cosine ends.

    Raises:
      UserError: the warm-up is longer than the run.
    """
    schedule = make_schedule(config, steps)
    tx = optax.chain(
        optax.clip_by_global_norm(config.clip_norm),
        optax.scale_by_adam(b1=config.b1, b2=config.b2, eps=config.eps),
        optax.add_decayed_weights(config.weight_decay, mask=decay_mask),
        optax.scale_by_learning_rate(schedule),
    )

    def update(updates: PyTree, state: PyTree, params: PyTree | None = None) -> tuple[PyTree, PyTree]:
        with jax.numpy_dtype_promotion("standard"):  # optax multiplies floats by integer counts
            return tx.update(updates, state, params)

    return optax.GradientTransformation(tx.init, update), schedule
