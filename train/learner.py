"""A small model and its compiled update, for runs that end in minutes and keep nothing but their scores."""

from collections.abc import Callable, Iterable, Mapping

import jax
import optax
from flax import nnx

from effarch.distill.objectives import answers
from effarch.eval.scores import AnswerScores, answer_scores
from effarch.models.lm import LMConfig, make_lm
from effarch.training.faults import NonFinite
from effarch.training.optimizer import OptimizerConfig, make_optimizer
from effarch.training.state import TrainState, make_state
from effarch.training.step import make_step
from effarch.typing import Array, PyTree


class Learner:
    """A model that learns the answers of a synthetic task, compiled once for every learning rate.

    Args:
      model: of which every run starts anew. optimizer: its learning rate does not count. steps: updates of a run.
      seed: of the initialisation.

    Attributes:
      parameters: how many it has.
    """

    def __init__(self, model: LMConfig, optimizer: OptimizerConfig, steps: int, seed: int) -> None:
        unit, _ = make_optimizer(optimizer.replace(learning_rate=1.0), steps)

        def split() -> tuple[nnx.GraphDef, PyTree, PyTree]:
            graph, params, rest = nnx.split(make_lm(model, seed), nnx.Param, ...)
            return graph, params, rest

        self._graph, params, _ = jax.eval_shape(split)
        self.parameters = sum(x.size for x in jax.tree.leaves(params))

        def tx(rate: Array | float) -> optax.GradientTransformation:
            return optax.chain(unit, optax.scale(rate))  # updates are linear in the rate

        def start() -> TrainState:
            _, params, rest = split()
            return make_state(params, rest, tx(1.0), seed)

        def step(state: TrainState, rows: PyTree, rate: Array) -> tuple[TrainState, PyTree]:
            return make_step(answers(self._graph), tx(rate))(state, rows)

        # One call per update: a scan over updates takes up to three times as long on CPU [rwkv7, 32 x 64 tokens].
        self._start, self._step = jax.jit(start), jax.jit(step, donate_argnums=0)

    def learn(self, rate: float, batches: Iterable[PyTree], each: Callable[[int, float], None]) -> TrainState:
        """The state after all batches; ``each(updates so far, loss)`` is called after every one.

        Raises:
          UserError: losses that stay non-finite.
        """
        state, guard = self._start(), NonFinite()
        for n, rows in enumerate(batches, start=1):
            state, metrics = self._step(state, rows, rate)
            guard.update(n, float(metrics["skipped"]))
            each(n, float(metrics["loss"]))
        return state

    def measure(self, state: TrainState, rows: Mapping[str, PyTree]) -> dict[str, AnswerScores | str]:
        """The scores on every set of rows, or why there are none."""
        found: dict[str, AnswerScores | str] = {}
        for name, batch in rows.items():
            try:
                found[name] = answer_scores(nnx.merge(self._graph, state.params, state.rest), batch)
            except ValueError as error:  # a mixer of fixed length, say
                found[name] = str(error)
        return found
