"""Everything a training run carries from one step to the next."""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax

from effarch import axes
from effarch.parallel import sharding
from effarch.typing import Array, Int, PyTree


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class TrainState:
    """An immutable pytree; what is in here is what a checkpoint holds.

    Attributes:
      step: batches consumed, skipped ones included.
      params: the NNX state of every ``nnx.Param``, float32.
      rest: the NNX state of every other variable (random features, say); a step never changes it.
      opt_state: the optimizer's state.
      rng: key data of the run's random key; step n uses ``fold_in(rng, n)``.
      skipped: steps that the NaN guard left without effect.
    """

    step: Int[Array, ""]
    params: PyTree
    rest: PyTree
    opt_state: PyTree
    rng: Array
    skipped: Int[Array, ""]


def make_state(params: PyTree, rest: PyTree, tx: optax.GradientTransformation, seed: int) -> TrainState:
    """The state before the first step; traceable.

    Args:
      params: ``nnx.split(model, nnx.Param, ...)[1]``.
      rest: ``nnx.split(model, nnx.Param, ...)[2]``.
      tx: the optimizer.
      seed: seed of the run's random key.
    """
    return TrainState(
        step=jnp.zeros((), jnp.int32),
        params=params,
        rest=rest,
        opt_state=tx.init(params),
        rng=jax.random.key_data(jax.random.key(seed)),
        skipped=jnp.zeros((), jnp.int32),
    )


def state_shardings(state: TrainState, tx: optax.GradientTransformation, rules: axes.Rules) -> TrainState:
    """The sharding of every array of a state (abstract or not), in the state's own structure."""
    params = sharding.variable_shardings(state.params, rules)
    whole: Any = sharding.replicated(rules)
    return TrainState(
        step=whole,
        params=params,
        rest=sharding.variable_shardings(state.rest, rules),
        opt_state=sharding.optimizer_shardings(tx, state.opt_state, params, rules),
        rng=whole,
        skipped=whole,
    )


def abstract_state(make: Callable[[], TrainState], tx: optax.GradientTransformation, rules: axes.Rules) -> TrainState:
    """Shapes, dtypes and shardings of the state that ``make`` would make: the target of a restore. Computes nothing."""
    state = jax.eval_shape(make)
    return sharding.with_shardings(state, state_shardings(state, tx, rules))
