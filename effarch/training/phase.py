"""A phase of training: steps that share an objective and an optimizer; its state, its shardings, its compiled step."""

import dataclasses
from collections.abc import Callable
from functools import partial
from typing import Any

import jax
from flax import nnx

from effarch import axes
from effarch.parallel.sharding import init_sharded, place
from effarch.training.optimizer import Schedule
from effarch.training.state import TrainState, abstract_state, make_state, state_shardings
from effarch.training.step import LossFn, Scheduled, jit_step, make_step
from effarch.training.trainable import All, Trains
from effarch.typing import PyTree


@dataclasses.dataclass(frozen=True)
class Phase:
    """Steps that share an objective and an optimizer.

    Attributes:
      name: shown and logged. first, last: steps of the run it lies between.
      loss_fn, tx, schedule: objective of the model, optimizer, learning rate of update n of the phase.
      frozen: what the objective reads besides the parameters (a teacher).
      evaluate: ``(params, rest) -> numbers`` of the model for the log, every ``evaluate_every`` steps (0: never).
      trains: which parameters of the model move.
    """

    name: str
    first: int
    last: int
    loss_fn: LossFn | Scheduled
    tx: Any
    schedule: Schedule
    frozen: tuple[PyTree, ...] = ()
    evaluate: Callable[[PyTree, PyTree], dict[str, float]] | None = None
    evaluate_every: int = 0
    trains: Trains = All()

    def state(self, model: nnx.Module, seed: int) -> TrainState:
        """The state before the phase's first step; traceable."""
        _, params, rest = self.trains.split(model, seed)
        fresh = make_state(params, rest, self.tx, seed)
        return dataclasses.replace(fresh, step=fresh.step + self.first)

    def step(self, placement: TrainState, rules: axes.Rules, grad_accum: int = 1) -> Callable[..., Any]:
        """``(state, batch, *frozen) -> (state, metrics)``, compiled: what runs, and what is planned.

        Args:
          placement: from :func:`shardings`. rules: of the mesh. grad_accum: parts of a batch.
        """
        loss_fn = self.trains.loss(self.loss_fn)
        update = make_step(loss_fn, self.tx, grad_accum=grad_accum, first=self.first)
        return jit_step(update, placement, rules, self.frozen)


def start(phase: Phase, make: Callable[[], nnx.Module] | nnx.Module, seed: int, rules: axes.Rules) -> TrainState:
    """The state before the phase's first step, sharded: of a model that ``make`` initialises, or of one that exists."""
    if isinstance(make, nnx.Module):
        return place(jax.jit(partial(phase.state, seed=seed))(make), shardings(phase, make, seed, rules))
    return init_sharded(lambda: phase.state(make(), seed), shardings(phase, make, seed, rules))


def shardings(phase: Phase, make: Callable[[], nnx.Module] | nnx.Module, seed: int, rules: axes.Rules) -> TrainState:
    """Where every array of the phase's state lives."""
    return state_shardings(_abstract(phase, make, seed), phase.tx, rules)


def saved(phase: Phase, make: Callable[[], nnx.Module] | nnx.Module, seed: int, rules: axes.Rules) -> TrainState:
    """Shapes and shardings of the phase's state: the target of a restore."""
    return abstract_state(lambda: _abstract(phase, make, seed), phase.tx, rules)


def _abstract(phase: Phase, make: Callable[[], nnx.Module] | nnx.Module, seed: int) -> TrainState:
    return jax.eval_shape(lambda: phase.state(make if isinstance(make, nnx.Module) else make(), seed))
