"""Distills an encoder into a student with other mixers: ``python -m train.distill_classifier CONFIG.yaml [key=value]``.

Teacher (trained, or reused), conversion, stages, the same student from scratch, and one table of them all, scored on
the test set; nothing is chosen by it. Repeating the command continues a run that was stopped. Exit codes as
``train.distill``.
"""

import sys
from functools import partial
from pathlib import Path
from typing import Annotated

import jax
import pydantic
from flax import nnx

from effarch.config import Config, main
from effarch.data.batches import Batches
from effarch.data.images import Digits, ImagesChoice, ImageSets
from effarch.distill.encoder_stages import AlignEncoder, ClassLogits, EncoderStageChoice
from effarch.distill.frozen import freeze
from effarch.distill.plan import plan
from effarch.distill.transfer import EncoderStudentConfig, student_config, transfer
from effarch.eval.scores import accuracy, class_distance
from effarch.experiment.abstractly import abstractly
from effarch.experiment.config import LoopConfig
from effarch.experiment.distill import ScratchConfig
from effarch.experiment.phases import stage_phase
from effarch.hub.export import export_run
from effarch.mixers.encoder_attention import EncoderAttention
from effarch.mixers.gelu_mlp import GeluMLP
from effarch.models.block import BlockConfig
from effarch.models.classifier import Classifier, ClassifierConfig, make_classifier
from effarch.models.lm import parameter_count
from effarch.parallel.mesh import make_mesh
from effarch.parallel.rules import make_rules
from effarch.training.faults import StopSignal
from effarch.training.load import load_classifier
from effarch.training.optimizer import OptimizerConfig
from effarch.training.run import Run, open_run
from train.alone import attended
from train.classify import ClassifyConfig, checked, classify
from train.encoder_results import EncoderResults
from train.encoder_teacher import Kind
from train.loop import metadata
from train.stages import check_stages, run_stages

KIND = Kind(ClassifierConfig, load_classifier, "a classifier", "head over classes")
_VIT = BlockConfig(mixer=EncoderAttention(num_heads=4, num_kv_heads=4, head_dim=16), channel=GeluMLP(hidden=128))


class EncoderTeacherConfig(Config):
    """The Transformer to distill."""

    path: str | None = pydantic.Field(
        None,
        description="folder of the Hugging Face hub (a ViT), hf:NAME of one there, or folder of a finished run; null: "
        "it is trained, in <output_dir>/<run_name>/teacher",
    )
    steps: int = pydantic.Field(600, gt=0, description="updates, if it is to be trained")
    model: ClassifierConfig = ClassifierConfig(pattern=(_VIT,), positions="learned")
    optimizer: OptimizerConfig = OptimizerConfig()


class DistillClassifierConfig(LoopConfig):
    """A distillation of a classifier."""

    data: ImagesChoice = pydantic.Field(Digits(), description="images and their split")
    teacher: EncoderTeacherConfig = EncoderTeacherConfig()
    student: EncoderStudentConfig = EncoderStudentConfig()
    scratch: ScratchConfig = ScratchConfig()
    stages: Annotated[tuple[EncoderStageChoice, ...], pydantic.Field(min_length=1)] = (AlignEncoder(), ClassLogits())

    def alone(self, name: str, model: ClassifierConfig, steps: int, optimizer: OptimizerConfig) -> ClassifyConfig:
        """A training below this run: same data, batches and seed; continued if it is there."""
        folder = Path(self.output_dir) / self.run_name / name
        return self.beside(ClassifyConfig, folder, model=model, steps=steps, optimizer=optimizer)


def distill(
    config: DistillClassifierConfig,
    run: Run,
    teacher: Classifier,
    student: Classifier,
    sets: ImageSets,
    results: EncoderResults,
    stop: StopSignal,
) -> Classifier:
    """The stages, one after the other; what each leaves behind is scored."""
    rules = make_rules(make_mesh(config.mesh))
    teacher_graph, frozen = freeze(teacher, rules)
    graph = nnx.split(student)[0]

    return run_stages(
        config,
        run.folder,
        student,
        plan(config.stages, batch_size=config.batch_size, seq_len=sets.train.seq_len, tokens=None),
        phase=lambda place: stage_phase(place, place.stage, teacher_graph, graph, frozen),
        batches=lambda place: Batches(sets.train, place.batch_size, config.seed),
        about=lambda phase: metadata(config, student.config, phase.trains, "classifier", images=sets.digest),
        measure=results.measure,
        rules=rules,
        stop=stop,
    )


def teacher_config(config: DistillClassifierConfig) -> ClassifierConfig:
    """The teacher's. Raises ``UserError`` where it is no classifier."""
    given = config.teacher
    return given.model if given.path is None else KIND.config_at(given.path)


def open_teacher(config: DistillClassifierConfig, sets: ImageSets, stop: StopSignal) -> Classifier:
    """Trains it, or reads it."""
    given = config.teacher
    if given.path is not None:
        return KIND.open(given.path)
    return classify(config.alone("teacher", given.model, given.steps, given.optimizer), sets, stop)


def converted(config: DistillClassifierConfig, of: ClassifierConfig) -> tuple[Classifier, Classifier]:
    """A fresh teacher of a config, and its student: what must be possible before anything is trained."""
    teacher = make_classifier(of)
    return teacher, transfer(teacher, make_classifier(student_config(teacher.config, config.student)))


def run(config: DistillClassifierConfig, dry_run: bool = False) -> int:
    """The command."""
    of = teacher_config(config)
    teacher, student = abstractly(lambda: converted(config, of))
    check_stages(config.stages, student)
    sets = checked(config.alone("teacher", teacher.config, 1, OptimizerConfig()))
    if dry_run:
        for name, model in (("teacher", teacher), ("student", student)):
            print(f"{name}: {parameter_count(model):,} parameters")
        return 0

    def work(stop: StopSignal) -> None:
        with open_run(config.output_dir, config.run_name, config, resume=config.checkpoint.resume) as opened:
            _run(config, opened, student.config, sets, stop)

    return attended(work)


def _run(
    config: DistillClassifierConfig, opened: Run, wanted: ClassifierConfig, sets: ImageSets, stop: StopSignal
) -> None:
    def score(model: Classifier, teacher: Classifier | None) -> dict[str, float]:
        size = min(config.batch_size, len(sets.test))
        row = {"accuracy": accuracy(model, sets.test.in_order(size))}
        if teacher is None:
            return row
        kl, agreement = class_distance(model, teacher, sets.test.in_order(size))
        return row | {"kl_bits": kl, "agreement": agreement}

    results = EncoderResults(opened.folder, score, stop)
    teacher = open_teacher(config, sets, stop)
    results.measure("teacher", teacher)
    if config.scratch.train:
        steps = sum(stage.steps for stage in config.stages)
        alone = classify(config.alone("scratch", wanted, steps, config.scratch.optimizer), sets, stop)
        results.measure("student, from scratch", alone)
    student = jax.jit(lambda model: transfer(model, make_classifier(wanted, config.seed)))(teacher)
    results.measure("student, converted", student)
    student = distill(config, opened, teacher, student, sets, results, stop)
    card = results.write(
        "train.distill_classifier",
        f"{config.run_name}: a Transformer distilled into {config.student.mixer.type_name}",
        lambda row: f"The student finds the class of {row['accuracy']:.1%} of {len(sets.test)} test images.",
        "image-classification",
        images={"set": config.data.type_name, "digest": sets.digest},
        seed=config.seed,
    )
    export_run(opened.folder, student, card=card)


if __name__ == "__main__":
    command = partial(main, DistillClassifierConfig, run, prog="python -m train.distill_classifier")
    sys.exit(command(description="Distills a Transformer that classifies images."))
