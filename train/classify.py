"""Trains a classifier of images: ``python -m train.classify CONFIG.yaml [key=value ...]``.

Repeating the command continues a run that was stopped. The test set is scored once, when training is over. Exit codes:
0 done, 2 a mistake in the config, 143 (130) after SIGTERM (SIGINT) with everything saved.
"""

import json
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import jax
import pydantic
from flax import nnx

from effarch.config import Config, UserError, main
from effarch.data.batches import Batches
from effarch.data.images import Digits, ImageRows, ImagesChoice, ImageSets, image_sets
from effarch.distill.objectives import classification
from effarch.eval.report import results_table, write_report
from effarch.eval.scores import accuracy
from effarch.experiment.abstractly import abstractly
from effarch.experiment.config import LoopConfig
from effarch.models.classifier import Classifier, ClassifierConfig, make_classifier
from effarch.training.faults import StopSignal
from effarch.training.optimizer import OptimizerConfig, make_optimizer
from effarch.training.phase import Phase
from train.alone import attended, train_alone
from train.loop import metadata
from train.results import what_was_run


class ValidationConfig(Config):
    """Evaluation while training."""

    every: int = pydantic.Field(0, ge=0, description="steps between scores of the validation set; 0: none")


class ClassifyConfig(LoopConfig):
    """The training of a classifier."""

    steps: int = pydantic.Field(1000, gt=0, description="updates")
    data: ImagesChoice = pydantic.Field(Digits(), description="images and their split")
    model: ClassifierConfig = ClassifierConfig()
    optimizer: OptimizerConfig = OptimizerConfig()
    eval: ValidationConfig = ValidationConfig()


def checked(config: ClassifyConfig) -> ImageSets:
    """The images of a run. Raises ``UserError`` where the model is not made for them."""
    sets = image_sets(config.data, config.model.input.tokens)
    rows = sets.train
    classes = 1 + int(max(part.labels.max() for part in (sets.train, sets.validation, sets.test)))
    if classes > config.model.classes:
        raise UserError(f"model.classes: expected at least {classes}, got {config.model.classes}")
    abstractly(lambda: make_classifier(config.model)(jax.numpy.asarray(rows.images[:1])))
    return sets


def scored(rows: ImageRows, config: ClassifyConfig) -> Callable[[Classifier], float]:
    """Accuracy of a model on ``rows``."""
    return lambda model: accuracy(model, rows.in_order(min(config.batch_size, len(rows))))


def classify(config: ClassifyConfig, sets: ImageSets, stop: StopSignal) -> Classifier:
    """Trains, or continues to train, the classifier of a run; one that is finished is only read back."""
    make = partial(make_classifier, config.model, config.seed)
    tx, schedule = make_optimizer(config.optimizer, config.steps)
    graph = nnx.split(jax.eval_shape(make), nnx.Param, ...)[0]
    validation = scored(sets.validation, config)
    phase = Phase(
        "train",
        0,
        config.steps,
        classification(graph),
        tx,
        schedule,
        evaluate=lambda params, rest: {"validation_accuracy": validation(nnx.merge(graph, params, rest))},
        evaluate_every=config.eval.every,
    )
    about = metadata(config, config.model, kind="classifier", images=sets.digest)
    batches = Batches(sets.train, config.batch_size, config.seed)
    state = train_alone(config, phase, make, batches=batches, about=about, stop=stop)
    return nnx.merge(graph, state.params, state.rest)


def report(config: ClassifyConfig, sets: ImageSets, model: Classifier) -> dict[str, Any]:
    """Scores the finished model, writes ``report.html`` and ``report.json``; returns its row of the table."""
    folder = Path(config.output_dir) / config.run_name
    mixers = dict.fromkeys(block.mixer.type_name for block in config.model.pattern)
    row = {
        "name": ", ".join(mixers),
        "accuracy": scored(sets.test, config)(model),
        "validation_accuracy": scored(sets.validation, config)(model),
        "parameters": sum(x.size for x in jax.tree.leaves(nnx.split(model, nnx.Param, ...)[1])),
    }
    counts = {name: len(getattr(sets, name)) for name in ("train", "validation", "test")}
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    write_report(
        folder,
        {
            "title": f"{config.run_name}: {config.data.type_name} classified by {row['name']}",
            "summary": f"{row['accuracy']:.1%} of {counts['test']} test images, none of which training saw.",
            "run": {
                **what_was_run("train.classify"),
                "images": {"set": config.data.type_name, "digest": sets.digest, **counts},
                "seed": config.seed,
            },
            "models": [row],
            "curves": [{"phase": "train", "metric": "nats per image", "rows": lines}],
        },
    )
    print(results_table([row]).plain())
    print(f"\nreport: {folder / 'report.html'}")
    return row


def run(config: ClassifyConfig, dry_run: bool = False) -> int:
    """The command."""
    sets = checked(config)
    if dry_run:
        model = jax.eval_shape(partial(make_classifier, config.model))
        print(f"{sum(x.size for x in jax.tree.leaves(model)):,} parameters; nothing was written")
        return 0
    return attended(lambda stop: report(config, sets, classify(config, sets, stop)))


if __name__ == "__main__":
    sys.exit(main(ClassifyConfig, run, prog="python -m train.classify", description="Trains a classifier of images."))
