"""The one loop: data -> step -> log -> evaluate -> save.

Pretraining, every stage of a distillation and the training of a classifier run it; they differ in the step they hand
it.
"""

import time
from collections.abc import Callable
from typing import Any

from flax import nnx

from effarch import axes
from effarch.config import Config, to_yaml
from effarch.data.batches import Batches, DataPosition
from effarch.experiment.config import LoopConfig
from effarch.parallel.processes import Agreement, any_of
from effarch.parallel.sharding import held_rows, put_batch
from effarch.training.checkpoint import Checkpoints
from effarch.training.faults import EXIT_SIGTERM, NonFinite, StopSignal
from effarch.training.metrics import Deferred, MetricsLog, Throughput, progress
from effarch.training.phase import Phase, saved, shardings, start
from effarch.training.profile import Profiler
from effarch.training.run import versions
from effarch.training.state import TrainState
from effarch.training.trainable import All, Trains


class Stopped(Exception):
    """A signal came; the state is saved. ``code`` is the exit code."""

    def __init__(self, code: int) -> None:
        super().__init__(code)
        self.code = code


def resumed(
    phase: Phase,
    make: Callable[[], nnx.Module] | nnx.Module,
    seed: int,
    rules: axes.Rules,
    checkpoints: Checkpoints,
    begins_at: DataPosition,
) -> tuple[TrainState, DataPosition, float]:
    """Where a phase goes on: its newest checkpoint, or its first step with the data at ``begins_at``.

    Returns the state, the data position, and the seconds that its steps have taken so far.
    """
    newest = checkpoints.latest() or 0
    if newest <= phase.first:
        return start(phase, make, seed, rules), begins_at, 0.0
    state, at, note = checkpoints.restore(newest, saved(phase, make, seed, rules))
    return state, DataPosition(*at), note.get("seconds", 0.0)


def metadata(
    config: Config, model: Config, trains: Trains | None = None, kind: str = "model", **data: Any
) -> dict[str, Any]:
    """What a checkpoint says of itself: the resolved config, the model, what of it moves, versions.

    Args:
      config: of the run. model: its model's. trains: what of it moves; None: all. kind: what
        :mod:`effarch.training.load` knows the model by; "model" is a language model. data: what it was trained on.
    """
    return {
        "trains": (trains or All()).model_dump(mode="json"),
        "config": to_yaml(config),
        kind: model.model_dump(mode="json"),
        "versions": versions(),
        **data,
    }


def run_phase(
    phase: Phase,
    state: TrainState,
    position: DataPosition,
    *,
    batches: Batches,
    placement: TrainState,
    rules: axes.Rules,
    grad_accum: int,
    checkpoints: Checkpoints,
    about: dict[str, Any],
    log: MetricsLog,
    log_every: int,
    profiler: Profiler,
    stop: StopSignal,
    seconds: float = 0.0,
) -> tuple[TrainState, DataPosition]:
    """Runs a phase from ``state`` to its last step; returns the state and the data position after it.

    ``seconds`` is the wall time that the phase took before, as its checkpoint says. The log's is of all of it,
    compiling, evaluating and saving included; what a kill undid is not in it.

    Raises:
      Stopped: a signal came; everything is saved.
      UserError: losses that stay non-finite, or a checkpoint that cannot be written.
    """
    step_fn = phase.step(placement, rules, grad_accum)
    step = int(state.step)
    tokens = batches.batch_size * batches.rows.seq_len
    held, guard, speed = Deferred(), NonFinite(), Throughput(tokens)
    begun = time.perf_counter() - seconds

    def report(seen: tuple[int, dict[str, float]] | None, extra: dict[str, float] | None = None) -> str:
        if seen is None:
            return ""
        at, metrics = seen
        guard.update(at, metrics["skipped"])
        if at % log_every == 0 or at == phase.last or extra:
            done = at - phase.first
            rate = float(phase.schedule(done - 1))
            line = {"phase": phase.name, "tokens": done * tokens, "learning_rate": rate, "tokens_per_s": speed(at)}
            line["seconds"] = round(time.perf_counter() - begun, 3)
            log.write(at, {**line, **metrics, **(extra or {})})
        return f"loss {metrics['loss']:.3f}"

    stream = batches.iterate(position, held=held_rows(rules, batches.batch_size))
    stopping = Agreement()
    with progress(phase.last - phase.first, phase.name, step - phase.first) as advance:
        while step < phase.last:
            profiler.before(step)
            _, batch = next(stream)
            state, metrics = step_fn(state, put_batch(batch, rules, batches.batch_size), *phase.frozen)
            step += 1
            profiler.after(step, metrics)
            position = batches.next_position(position)
            advance(step - phase.first, report(held.push(step, metrics)))
            if phase.evaluate and phase.evaluate_every and step % phase.evaluate_every == 0:
                report(held.flush(), phase.evaluate(*phase.trains.whole(state.params, state.rest)))
            stopped = stopping(stop.requested)
            last = stopped or step == phase.last
            spent = {"seconds": time.perf_counter() - begun}
            checkpoints.save(step, state, (position.epoch, position.batch), {**about, **spent}, force=last)
            if stopped:
                break
        report(held.flush())
    stream.close()
    checkpoints.wait()
    if any_of(stop.requested):
        raise Stopped(stop.exit_code or EXIT_SIGTERM)  # 0: the signal went to another process
    return state, position


def continued(
    config: LoopConfig,
    phase: Phase,
    make: Callable[[], nnx.Module] | nnx.Module,
    *,
    begins_at: DataPosition,
    batches: Batches,
    about: dict[str, Any],
    rules: axes.Rules,
    checkpoints: Checkpoints,
    profiler: Profiler,
    log: MetricsLog,
    stop: StopSignal,
) -> TrainState:
    """The state after a phase of a run, begun or gone on with; see :func:`resumed` and :func:`run_phase`."""
    state, position, seconds = resumed(phase, make, config.seed, rules, checkpoints, begins_at)
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
