"""Trains a language model on next tokens: ``python -m train.pretrain CONFIG.yaml [key=value ...]``.

Repeating the command continues a run that was stopped. Exit codes: 0 done, 2 a mistake in the config, 143 (130) after
SIGTERM (SIGINT) with everything saved.
"""

import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax
from flax import nnx

from effarch.config import main
from effarch.data.batches import Batches
from effarch.data.prepare import Prepared, prepare
from effarch.eval.scores import Batch, text_scores
from effarch.eval.suite import first_batches
from effarch.experiment.abstractly import abstractly
from effarch.experiment.config import PretrainConfig, RunConfig
from effarch.experiment.phases import pretraining
from effarch.hub.export import export_run
from effarch.models.lm import LM, make_lm, parameter_count
from effarch.parallel.processes import first_before_others, of_this_process, on_first
from effarch.training.faults import StopSignal
from train.alone import attended, train_alone
from train.loop import metadata


def validation(prepared: Prepared, config: RunConfig) -> Iterator[Batch]:
    """The first ``eval.rows`` rows of validation text, in batches."""
    return first_batches(prepared.validation, config.eval.rows, config.batch_size)


def evaluation(graph: Any, prepared: Prepared, config: RunConfig) -> Callable[[Any, Any], dict[str, float]]:
    """What is logged every ``eval.every`` steps, of the model with this graph: bits per byte of validation text."""

    def evaluate(params: Any, rest: Any) -> dict[str, float]:
        lm = nnx.merge(graph, params, rest)
        scores = text_scores(lm, validation(prepared, config), tokenizer=prepared.tokenizer)
        return {"bits_per_byte": scores.bits_per_byte}

    return evaluate


def pretrain(config: PretrainConfig, *, stop: StopSignal, prepared: Prepared | None = None, name: str = "train") -> LM:
    """Trains, or continues to train, the model of a run; one that is finished is only read back.

    Args:
      config: the run. stop: a signal to save and stop. prepared: its data, if at hand. name: shown while training.
    """
    config = config.fitted()
    prepared = prepared or prepare(config.data, config.seq_len, config.cache_dir)

    def make() -> LM:
        return make_lm(config.model, config.seed)

    graph = nnx.split(jax.eval_shape(make), nnx.Param, ...)[0]
    phase = pretraining(config, graph, name=name, evaluate=evaluation(graph, prepared, config))
    batches = Batches(prepared.train, config.batch_size, config.seed)
    about = metadata(config, config.model, tokenizer=prepared.tokenizer.about())
    state = train_alone(config, phase, make, batches=batches, about=about, stop=stop, begin=prepared.tokenizer.save)
    return nnx.merge(graph, state.params, state.rest)


def _abstract(config: PretrainConfig) -> LM:
    return abstractly(lambda: make_lm(config.model, config.seed))


def run(config: PretrainConfig, dry_run: bool = False) -> int:
    """The command."""
    config = config.fitted()
    if dry_run:
        print(f"{parameter_count(_abstract(config)):,} parameters; nothing was written")
        return 0
    folder = Path(config.output_dir) / config.run_name

    def work(stop: StopSignal) -> None:
        _abstract(config)  # what does not fit is said before anything is written
        prepared = first_before_others(lambda: prepare(config.data, config.seq_len, config.cache_dir))
        lm = of_this_process(pretrain(config, stop=stop, prepared=prepared))

        def finish() -> None:
            scores = text_scores(lm, validation(prepared, config), tokenizer=prepared.tokenizer)
            export_run(folder, lm)
            print(f"{folder}: {scores.bits_per_byte:.3f} bits per byte of validation text")

        on_first(finish)

    return attended(work, config.processes)


if __name__ == "__main__":
    sys.exit(main(PretrainConfig, run, prog="python -m train.pretrain", description="Trains a language model."))
