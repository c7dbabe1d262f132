"""Trains a language model on next tokens: ``python -m train.pretrain CONFIG.yaml [key=value ...]``.

Repeating the command continues a run that was stopped. Exit codes: 0 done, 2 a mistake in the config, 143 (130) after
SIGTERM (SIGINT) with everything saved.
"""

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import jax
import pydantic
from flax import nnx

from effarch.config import Config, UserError, main
from effarch.data.batches import Batches, DataPosition
from effarch.data.prepare import DataConfig, Prepared, prepare
from effarch.distill.objectives import next_token
from effarch.eval.scores import text_scores
from effarch.models.lm import LM, LMConfig, make_lm, parameter_count
from effarch.parallel.mesh import MeshConfig, make_mesh
from effarch.parallel.rules import make_rules
from effarch.training.checkpoint import CheckpointConfig, Checkpoints
from effarch.training.faults import StopSignal
from effarch.training.metrics import LogConfig, MetricsLog
from effarch.training.optimizer import OptimizerConfig, make_optimizer
from effarch.training.profile import ProfileConfig, Profiler
from effarch.training.run import open_run
from train.loop import Phase, Stopped, metadata, run_phase, saved, shardings, start

T = TypeVar("T")


class EvalConfig(Config):
    """Evaluation on held-out rows."""

    every: int = pydantic.Field(0, ge=0, description="steps between evaluations while training; 0: none")
    rows: int = pydantic.Field(64, gt=0, description="rows of validation text, and of recall")
    window: int = pydantic.Field(64, gt=0, description="tokens; what recall is split at")
    sinks: int = pydantic.Field(4, ge=0, description="of the training-free window + sinks baseline")


class RunConfig(Config):
    """What every run has."""

    run_name: str = pydantic.Field("run", description="folder of the run below output_dir")
    output_dir: str = pydantic.Field("runs", description="folder of all runs")
    cache_dir: str = pydantic.Field("runs/data", description="folder of prepared data")
    seed: int = pydantic.Field(0, ge=0, lt=2**32, description="of initialisation and data order")
    batch_size: int = pydantic.Field(8, gt=0, description="rows per update, over all devices")
    grad_accum: int = pydantic.Field(1, gt=0, description="parts that a batch is processed in, one after the other")
    seq_len: int = pydantic.Field(512, gt=1, description="tokens per row")
    data: DataConfig = DataConfig()
    mesh: MeshConfig = MeshConfig()
    checkpoint: CheckpointConfig = CheckpointConfig()
    log: LogConfig = LogConfig()
    eval: EvalConfig = EvalConfig()
    profile: ProfileConfig = ProfileConfig()


class PretrainConfig(RunConfig):
    """A pretraining run."""

    steps: int = pydantic.Field(1000, gt=0, description="updates")
    model: LMConfig = LMConfig()
    optimizer: OptimizerConfig = OptimizerConfig()


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


def validation(prepared: Prepared, config: RunConfig) -> list[dict[str, Any]]:
    """The first ``eval.rows`` rows of validation text, in batches."""
    size = min(config.batch_size, config.eval.rows)
    found = prepared.validation.in_order(size)
    return [batch for _, batch in zip(range(config.eval.rows // size), found, strict=False)]


def evaluation(graph: Any, prepared: Prepared, config: RunConfig) -> Callable[[Any, Any], dict[str, float]]:
    """What is logged every ``eval.every`` steps, of the model with this graph: bits per byte of validation text."""

    def evaluate(params: Any, rest: Any) -> dict[str, float]:
        scores = text_scores(nnx.merge(graph, params, rest), validation(prepared, config))
        return {"bits_per_byte": scores.bits_per_byte}

    return evaluate


def pretrain(config: PretrainConfig, *, stop: StopSignal, prepared: Prepared | None = None, name: str = "train") -> LM:
    """Trains, or continues to train, the model of a run; one that is finished is only read back.

    Args:
      config: the run. stop: a signal to save and stop. prepared: its data, if at hand. name: shown while training.
    """
    rules = make_rules(make_mesh(config.mesh))
    prepared = prepared or prepare(config.data, config.seq_len, config.cache_dir)

    def make() -> LM:
        return make_lm(config.model, config.seed)

    tx, schedule = make_optimizer(config.optimizer, config.steps)
    graph = nnx.split(jax.eval_shape(make), nnx.Param, ...)[0]
    phase = Phase(
        name,
        0,
        config.steps,
        next_token(graph),
        tx,
        schedule,
        evaluate=evaluation(graph, prepared, config),
        evaluate_every=config.eval.every,
    )
    batches = Batches(prepared.train, config.batch_size, config.seed)
    with (
        open_run(config.output_dir, config.run_name, config, resume=config.checkpoint.resume) as run,
        Checkpoints(run.folder, config.checkpoint.every, config.checkpoint.keep) as checkpoints,
        Profiler(run.folder, config.profile) as profiler,
    ):
        newest = checkpoints.latest()
        if newest is None:
            state, position = start(phase, make, config.seed, rules), DataPosition()
        else:
            state, at, _ = checkpoints.restore(newest, saved(phase, make, config.seed, rules))
            position = DataPosition(*at)
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
                about=metadata(config, config.model),
                log=log,
                log_every=config.log.every,
                profiler=profiler,
                stop=stop,
            )
    return nnx.merge(graph, state.params, state.rest)


def run(config: PretrainConfig, dry_run: bool = False) -> int:
    """The command."""
    lm = abstractly(lambda: make_lm(config.model, config.seed))
    if dry_run:
        print(f"{parameter_count(lm):,} parameters; nothing was written")
        return 0
    with StopSignal() as stop:
        try:
            prepared = prepare(config.data, config.seq_len, config.cache_dir)
            lm = pretrain(config, stop=stop, prepared=prepared)
        except Stopped as stopped:
            print(f"stopped and saved; repeat the command to continue (exit code {stopped.code})", file=sys.stderr)
            return stopped.code
        scores = text_scores(lm, validation(prepared, config))
    print(f"{Path(config.output_dir) / config.run_name}: {scores.bits_per_byte:.3f} bits per byte of validation text")
    return 0


if __name__ == "__main__":
    sys.exit(main(PretrainConfig, run, prog="python -m train.pretrain", description="Trains a language model."))
