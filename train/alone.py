"""A run that is one phase of the loop: the whole of pretraining, or of the training of a classifier."""

from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import jax
import pydantic
from flax import nnx

from effarch.config import Config, UserError
from effarch.data.batches import Batches, DataPosition
from effarch.parallel.mesh import MeshConfig, make_mesh
from effarch.parallel.rules import make_rules
from effarch.training.checkpoint import CheckpointConfig, Checkpoints
from effarch.training.faults import StopSignal
from effarch.training.metrics import LogConfig, MetricsLog
from effarch.training.profile import ProfileConfig, Profiler
from effarch.training.run import open_run
from effarch.training.state import TrainState
from train.loop import Phase, resumed, run_phase, shardings

T = TypeVar("T")


class LoopConfig(Config):
    """What every run has."""

    run_name: str = pydantic.Field("run", description="folder of the run below output_dir")
    output_dir: str = pydantic.Field("runs", description="folder of all runs")
    seed: int = pydantic.Field(0, ge=0, lt=2**32, description="of initialisation and data order")
    batch_size: int = pydantic.Field(8, gt=0, description="rows per update, over all devices")
    grad_accum: int = pydantic.Field(1, gt=0, description="parts that a batch is processed in, one after the other")
    mesh: MeshConfig = MeshConfig()
    checkpoint: CheckpointConfig = CheckpointConfig()
    log: LogConfig = LogConfig()
    profile: ProfileConfig = ProfileConfig()


def abstractly(make: Callable[[], T]) -> T:
    """What ``make`` would make, nothing computed; sizes that do not fit are the user's mistake.

    Raises:
      UserError: ``make`` raised a ``ValueError``.
    """
    try:
        return jax.eval_shape(make)
    except pydantic.ValidationError as error:
        lines = [item["msg"].removeprefix("Value error, ") for item in error.errors(include_url=False)]
        raise UserError(*lines) from error
    except ValueError as error:
        raise UserError(str(error)) from error


def train_alone(
    config: LoopConfig,
    phase: Phase,
    make: Callable[[], nnx.Module],
    *,
    batches: Batches,
    about: dict[str, Any],
    stop: StopSignal,
    begin: Callable[[Path], None] = lambda folder: None,
) -> TrainState:
    """A run of one phase, new or continued, to its end; one that is finished is only read back.

    Args:
      config: the run. phase: what is minimised. make: initialises the model. batches: of the data. about: the run, in
        its checkpoints' metadata. stop: a signal to save and stop. begin: what is done first, in the run's folder.
    """
    rules = make_rules(make_mesh(config.mesh))
    with (
        open_run(config.output_dir, config.run_name, config, resume=config.checkpoint.resume) as run,
        Checkpoints(run.folder, config.checkpoint.every, config.checkpoint.keep) as checkpoints,
        Profiler(run.folder, config.profile) as profiler,
    ):
        begin(run.folder)
        state, position, seconds = resumed(phase, make, config.seed, rules, checkpoints, DataPosition())
        with MetricsLog(run.folder, int(state.step), config.log.tensorboard) as log:
            state, _ = run_phase(
                phase,
                state,
                position,
                batches=batches,
                placement=shardings(phase, make, config.seed, rules),
                rules=rules,
                grad_accum=config.grad_accum,
                checkpoints=checkpoints,
                about=about,
                log=log,
                log_every=config.log.every,
                profiler=profiler,
                stop=stop,
                seconds=seconds,
            )
    return state
