"""A run that is one phase of the loop: the whole of pretraining, or of the training of a classifier."""

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from flax import nnx

from effarch.data.batches import Batches, DataPosition
from effarch.experiment.config import LoopConfig
from effarch.parallel.mesh import make_mesh
from effarch.parallel.processes import ProcessesConfig, is_first, on_first, started
from effarch.parallel.rules import make_rules
from effarch.training.checkpoint import Checkpoints
from effarch.training.faults import StopSignal
from effarch.training.metrics import MetricsLog
from effarch.training.phase import Phase
from effarch.training.profile import Profiler
from effarch.training.run import open_run
from effarch.training.state import TrainState
from train.loop import Stopped, continued

ALONE = ProcessesConfig()


def attended(work: Callable[[StopSignal], object], processes: ProcessesConfig = ALONE) -> int:
    """Does the work of a command, its processes started and signals noted; the exit code."""
    with started(processes), StopSignal() as stop:
        try:
            work(stop)
        except Stopped as stopped:
            if is_first():
                print(f"stopped and saved; repeat the command to continue (exit code {stopped.code})", file=sys.stderr)
            return stopped.code
    return 0


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
        on_first(lambda: begin(run.folder))
        with MetricsLog(run.folder, checkpoints.latest() or 0, config.log.tensorboard) as log:
            return continued(
                config,
                phase,
                make,
                begins_at=DataPosition(),
                batches=batches,
                about=about,
                rules=rules,
                checkpoints=checkpoints,
                profiler=profiler,
                log=log,
                stop=stop,
            )
