"""The stages of any distillation, one after the other: each goes on where it was, and what it leaves is measured."""

from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, TypeVar

import jax
from flax import nnx

from effarch import axes
from effarch.data.batches import Batches
from effarch.distill.plan import Planned
from effarch.distill.stages import Stage
from effarch.experiment.config import LoopConfig
from effarch.training.checkpoint import Checkpoints
from effarch.training.faults import StopSignal
from effarch.training.metrics import MetricsLog
from effarch.training.phase import Phase
from effarch.training.profile import Profiler
from train.loop import continued

M = TypeVar("M", bound=nnx.Module)


def check_stages(stages: Iterable[Stage], student: nnx.Module) -> None:
    """Raises ``UserError`` where an optimizer, or what of the student a stage trains, cannot be; it may be abstract."""
    for stage in stages:
        stage.transformation()
        jax.eval_shape(stage.trains.split, student)


def run_stages(
    config: LoopConfig,
    folder: Path,
    student: M,
    places: Sequence[Planned],
    *,
    phase: Callable[[Planned], Phase],
    batches: Callable[[Planned], Batches],
    about: Callable[[Phase], dict[str, Any]],
    measure: Callable[[str, M], None],
    rules: axes.Rules,
    stop: StopSignal,
) -> M:
    """The student after the last stage; stages that a later checkpoint has left behind are passed over.

    Args:
      config: the run. folder: of it. student: as converted. places: the stages in their places.
      phase, batches: of a stage that is to be run. about: a phase, in its checkpoints' metadata.
      measure: told the name and the student after each stage. rules: of the mesh. stop: a signal to save and stop.

    Raises:
      Stopped: a signal came; everything is saved.
    """
    graph = nnx.split(student)[0]
    with (
        Checkpoints(folder, config.checkpoint.every, config.checkpoint.keep) as checkpoints,
        Profiler(folder, config.profile) as profiler,
        MetricsLog(folder, checkpoints.latest() or 0, config.log.tensorboard) as log,
    ):
        for place in places:
            if (checkpoints.latest() or 0) > place.last:
                continue  # a later stage was reached
            what, rows = phase(place), batches(place)
            state = continued(
                config,
                what,
                student,
                begins_at=rows.position_after(place.batches_before),
                batches=rows,
                about=about(what),
                rules=rules,
                checkpoints=checkpoints,
                profiler=profiler,
                log=log,
                stop=stop,
            )
            student = what.trains.model(graph, state.params, state.rest)
            measure(f"student, after {place.name}", student)
    return student
