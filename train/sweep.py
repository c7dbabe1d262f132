"""Trains every causal mixer on one synthetic task: ``python -m train.sweep CONFIG.yaml [key=value ...]``.

One small language model per mixer and learning rate, all on the same rows; then one table and ``report.html`` of
accuracy, state bytes and learning rates. Repeating the command trains what is missing: results are kept one by one in
``results.jsonl``, each with the config of its model, so that mixers, sizes and learning rates may change in between.
Exit codes: 0 done, 2 a mistake in the config, 143 (130) after SIGTERM (SIGINT) with every finished result kept.
"""

import dataclasses
import os
import platform
import shlex
import sys
import threading
import time
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Annotated, Any, cast

import jax
import pydantic

import effarch.mixers  # noqa: F401  (registers)
from effarch import registry
from effarch.config import Config, UserError, main
from effarch.config.yaml import TypedText
from effarch.data.synthetic import Task, TaskChoice, batch
from effarch.eval.sweep import models_of, sweep_table, write_sweep
from effarch.experiment.abstractly import abstractly
from effarch.mixers.base import MixerChoice, MixerConfig
from effarch.mixers.softmax_attention import SoftmaxAttention
from effarch.models.block import BlockConfig
from effarch.models.lm import LMConfig, make_lm
from effarch.training.faults import StopSignal
from effarch.training.metrics import progress
from effarch.training.optimizer import OptimizerConfig
from effarch.training.run import open_run, versions
from train.learner import Learner
from train.loop import Stopped
from train.records import Records

TRAINING, HELD_OUT = 0, 1  # streams of rows
FREE = ("mixers", "sizes", "learning_rates", "jobs")  # every result is kept with what it depends on of these
_ATTENTION = SoftmaxAttention(num_heads=2, num_kv_heads=2, head_dim=32)


class SweepConfig(Config):
    """A sweep over mixers and learning rates."""

    run_name: str = pydantic.Field("sweep", description="folder of the run below output_dir")
    output_dir: str = pydantic.Field("runs", description="folder of all runs")
    seed: int = pydantic.Field(0, ge=0, lt=2**32, description="of initialisation and rows")
    task: TaskChoice = pydantic.Field("mqar", validate_default=True, description="what is trained")
    evaluate: tuple[TaskChoice, ...] = pydantic.Field(
        (), description="what is measured besides held-out rows; keys that are not given are those of task"
    )
    mixers: tuple[MixerChoice, ...] = pydantic.Field((), description="what is compared; none: every causal mixer")
    sizes: tuple[MixerChoice, ...] = pydantic.Field((), description="what mixers of these types have, where not said")
    learning_rates: Annotated[tuple[pydantic.PositiveFloat, ...], pydantic.Field(min_length=1)] = (1e-3, 3e-3, 1e-2)
    steps: int = pydantic.Field(500, gt=0, description="updates")
    batch_size: int = pydantic.Field(16, gt=0, description="rows per update")
    eval_rows: int = pydantic.Field(128, gt=0, description="rows per measurement")
    model: LMConfig = pydantic.Field(
        LMConfig(dim=64, num_layers=2, pattern=(BlockConfig(mixer=_ATTENTION, channel=None),)),
        description="mixers take the place, heads and head size of its softmax attention; vocab_size is the task's",
    )
    optimizer: OptimizerConfig = pydantic.Field(OptimizerConfig(), description="learning_rate is that of the sweep")
    jobs: int = pydantic.Field(1, gt=0, description="mixers at a time, each in a thread of its own")

    @pydantic.field_validator("evaluate", mode="before")
    @classmethod
    def _changed(cls, value: Any, info: pydantic.ValidationInfo) -> Any:
        task, value = info.data.get("task"), value.as_yaml() if isinstance(value, TypedText) else value
        if task is None or not isinstance(value, list | tuple):
            return value
        same = {"type": task.type_name, **{name: getattr(task, name) for name in type(task).model_fields}}
        return [same | dict(item) if isinstance(item, Mapping) and "type" not in item else item for item in value]

    def measured(self) -> dict[str, Task]:
        """Every task that is measured, by name; the one that was trained is the first."""
        return {"held out": self.task} | {task.differences(self.task): task for task in self.evaluate}

    def models(self) -> dict[str, LMConfig]:
        """The model of every mixer, by name: the mixer's type and what was said of it."""
        every = [cls() for cls in cast(dict[str, type[MixerConfig]], registry.configs("mixer")).values() if cls.causal]
        chosen = self.mixers or every
        return {f"{m.type_name} {m.differences(type(m)())}".strip(): self._model(m) for m in chosen}

    def _model(self, mixer: MixerConfig) -> LMConfig:
        for sizes in self.sizes:
            if type(sizes) is type(mixer):
                defaults = {name: field.default for name, field in type(mixer).model_fields.items()}
                mixer = mixer.replace(**{n: getattr(sizes, n) for n, d in defaults.items() if getattr(mixer, n) == d})
        blocks = [
            block.replace(mixer=mixer.matching(block.mixer)) if type(block.mixer) is SoftmaxAttention else block
            for block in self.model.pattern
        ]
        vocab_size = max(task.vocab_size for task in self.measured().values())
        return self.model.replace(pattern=tuple(blocks), vocab_size=vocab_size)


def sweep(config: SweepConfig, records: Records, stop: StopSignal) -> None:
    """Trains and measures everything that has no result yet, and what failed."""
    models, tasks = config.models(), config.measured()
    batches = [batch(config.task, (config.seed, TRAINING), n, config.batch_size) for n in range(config.steps)]
    rows = {
        name: batch(task, (config.seed, HELD_OUT, i), 0, config.eval_rows)
        for i, (name, task) in enumerate(tasks.items())
    }

    def missing(model: LMConfig) -> list[float]:
        return [r for r in config.learning_rates if "scores" not in (records.get(model, r) or {})]

    def learn(name: str, each: Callable[[int, str], None]) -> None:
        model, learner = models[name], None
        for rate in missing(model):
            begun, taken = time.perf_counter(), 0
            record: dict[str, Any] = {"name": name, "learning_rate": rate}

            def step(n: int, loss: float, rate: float = rate) -> None:
                nonlocal taken
                taken = n
                each(1, f"{name}, lr {rate:g}, loss {loss:.3f}")

            try:
                learner = learner or Learner(model, config.optimizer, config.steps, config.seed)
                state = learner.learn(rate, batches, step)
                scores = learner.measure(state, rows)
                record |= {
                    "parameters": learner.parameters,
                    "state_bytes": {task.length: model.state_bytes(task.length) for task in tasks.values()},
                    "skipped": int(state.skipped),
                    "scores": {n: s if isinstance(s, str) else dataclasses.asdict(s) for n, s in scores.items()},
                }
            except Stopped:
                raise
            except UserError as error:
                record |= {"scores": {}, "failed": str(error)}  # it diverged, which is a result
            except Exception as error:  # whatever it is: the table says so, the others go on, a repetition tries again
                record |= {"failed": f"{type(error).__name__}: {(str(error).splitlines() or [''])[0]}"}
            records.add(model, record | {"seconds": time.perf_counter() - begun})
            each(config.steps - taken, name)

    total = sum(len(missing(model)) for model in models.values()) * config.steps
    done, lock = 0, threading.Lock()
    with progress(total, config.run_name) as advance, ThreadPoolExecutor(config.jobs) as threads:

        def each(count: int, note: str) -> None:
            nonlocal done
            with lock:
                done += count
                advance(done, note)
            if stop.requested:
                raise Stopped(stop.exit_code)

        list(threads.map(lambda name: learn(name, each), models))


def report(config: SweepConfig, records: Records) -> dict[str, Any]:
    """What is known of the mixers and learning rates of ``config``: see :mod:`effarch.eval.sweep`."""
    found = []
    for name, model in config.models().items():
        classes = {block.mixer.transition for block in model.pattern if block.mixer != _ATTENTION}
        kept = [records.get(model, rate) for rate in config.learning_rates]
        found += [{**r, "name": name, "transition": " ".join(sorted(classes))} for r in kept if r is not None]
    tasks = {name: task.length for name, task in config.measured().items()}
    return {
        "title": f"{config.run_name}: {config.task.type_name}, {config.steps} updates of {config.batch_size} rows",
        "tasks": tasks,
        "models": models_of(found, tasks),
        "run": {
            "command": shlex.join(["python", "-m", "train.sweep", *sys.argv[1:]]),
            "versions": versions(),
            "machine": f"{platform.system()} {platform.machine()}, {os.cpu_count()} cores",
            "task": config.task.model_dump(mode="json"),
            "seed": config.seed,
        },
    }


def run(config: SweepConfig, dry_run: bool = False) -> int:
    """The command."""
    models = config.models()
    if dry_run:
        for name, model in models.items():
            print(f"{name}: {sum(x.size for x in jax.tree.leaves(abstractly(partial(make_lm, model)))):,} parameters")
        return 0
    with StopSignal() as stop, open_run(config.output_dir, config.run_name, config, free=FREE) as folder:
        records = Records(folder.folder / "results.jsonl")
        try:
            sweep(config, records, stop)
        except Stopped as stopped:
            print(f"stopped; repeat the command to continue (exit code {stopped.code})", file=sys.stderr)
            return stopped.code
        found = report(config, records)
        page = write_sweep(folder.folder, found)
        print(sweep_table(found["models"], found["tasks"]).plain())
        print(f"\nreport: {page}")
    return 0


if __name__ == "__main__":
    sys.exit(main(SweepConfig, run, prog="python -m train.sweep", description="Compares mixers on a synthetic task."))
