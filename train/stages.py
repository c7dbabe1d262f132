"""The stages of any distillation, one after the other: each goes on where it was, and what it leaves is measured."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TypeVar

from flax import nnx

from effarch import axes
from effarch.data.batches import Batches
from effarch.distill.plan import Planned
from effarch.experiment.config import LoopConfig
from effarch.training.checkpoint import Checkpoints
from effarch.training.faults import StopSignal
from effarch.training.metrics import MetricsLog
from effarch.training.phase import Phase, shardings
from effarch.training.profile import Profiler
from train.loop import resumed, run_phase

M = TypeVar("M", bound=nnx.Module)


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
            begins_at = rows.position_after(place.batches_before)
            state, position, seconds = resumed(what, student, config.seed, rules, checkpoints, begins_at)
            state, _ = run_phase(
                what,
                state,
                position,
                batches=rows,
                placement=shardings(what, student, config.seed, rules),
                rules=rules,
                grad_accum=config.grad_accum,
                checkpoints=checkpoints,
                about=about(what),
                log=log,
                log_every=config.log.every,
                profiler=profiler,
                stop=stop,
                seconds=seconds,
            )
            student = what.trains.model(graph, state.params, state.rest)
            measure(f"student, after {place.name}", student)
    return student
