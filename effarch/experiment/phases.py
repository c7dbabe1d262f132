"""The phases of runs: what the loop runs, and what a plan compiles."""

from collections.abc import Callable

from flax import nnx

from effarch.distill.objectives import next_token
from effarch.distill.plan import Planned
from effarch.distill.stages import Stage, cached
from effarch.experiment.config import PretrainConfig
from effarch.training.optimizer import make_optimizer
from effarch.training.phase import Phase
from effarch.typing import PyTree

Evaluate = Callable[[PyTree, PyTree], dict[str, float]]


def pretraining(
    config: PretrainConfig, graph: nnx.GraphDef, *, name: str = "train", evaluate: Evaluate | None = None
) -> Phase:
    """The one phase of pretraining, of a model with this graph.

    Args:
      config: the run. graph: of its model. name: shown while training. evaluate: see :class:`Phase`.
    """
    tx, schedule = make_optimizer(config.optimizer, config.steps)
    loss, every = next_token(graph), config.eval.every
    return Phase(name, 0, config.steps, loss, tx, schedule, evaluate=evaluate, evaluate_every=every)


def stage_phase(
    place: Planned,
    stage: Stage,
    teacher: nnx.GraphDef,
    student: nnx.GraphDef,
    frozen: PyTree,
    evaluate: Evaluate | None = None,
    evaluate_every: int = 0,
) -> Phase:
    """A stage of a distillation as a phase.

    Args:
      place: of the stage. stage: itself, as it is in its place or told how texts end.
      teacher, student: graphs of the models. frozen: the teacher's variables, which a stage with a cache does not read.
      evaluate, evaluate_every: see :class:`Phase`.
    """
    tx, schedule = stage.transformation()
    return Phase(
        place.name,
        place.first,
        place.last,
        stage.objective(teacher, student),
        tx,
        schedule,
        frozen=() if cached(stage) else (frozen,),
        evaluate=evaluate,
        evaluate_every=evaluate_every,
        trains=stage.trains,
    )
