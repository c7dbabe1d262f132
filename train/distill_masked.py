"""Distills a masked language model (BERT) into a student with other mixers that see both directions.

``python -m train.distill_masked CONFIG.yaml [key=value ...]``: teacher (a BERT or RoBERTa of the hub, or trained),
conversion, stages, the same student from scratch, and one table of them all on hidden tokens of validation text.
Repeating the command continues a run that was stopped. Exit codes as ``train.distill``.
"""

import dataclasses
import sys
from pathlib import Path
from typing import Annotated, Any, cast

import jax
import jax.numpy as jnp
import pydantic
from flax import nnx

from effarch import axes
from effarch.config import Config, main
from effarch.data.batches import Batches
from effarch.data.masking import Masking
from effarch.data.prepare import Prepared
from effarch.distill.frozen import freeze
from effarch.distill.masked import hiding
from effarch.distill.masked_stages import AlignMasked, MaskedLogits, MaskedStageChoice
from effarch.distill.plan import Planned, plan
from effarch.distill.transfer import EncoderStudentConfig, student_config, transfer
from effarch.eval.masked import masked_scores
from effarch.experiment.abstractly import abstractly
from effarch.experiment.distill import ScratchConfig
from effarch.experiment.phases import stage_phase
from effarch.hub.export import export_run
from effarch.models.lm import parameter_count
from effarch.models.masked_lm import MaskedLM, MaskedLMConfig, make_masked_lm
from effarch.parallel.mesh import make_mesh
from effarch.parallel.processes import first_before_others, of_this_process, on_first
from effarch.parallel.rules import make_rules
from effarch.training.faults import StopSignal
from effarch.training.load import load_masked_lm
from effarch.training.optimizer import OptimizerConfig
from effarch.training.phase import Phase
from effarch.training.run import Run, open_run
from effarch.training.step import LossFn
from train.alone import attended
from train.encoder_results import EncoderResults
from train.encoder_teacher import Kind, checkpoint_folder
from train.loop import metadata
from train.pretrain_masked import BERT, MaskedConfig, PretrainMaskedConfig, masking_for, pretrain_masked
from train.stages import check_stages, run_stages
from train.teacher import prepare_for

KIND = Kind(MaskedLMConfig, load_masked_lm, "a masked language model", "head over the vocabulary")


class MaskedTeacherConfig(Config):
    """The Transformer to distill."""

    path: str | None = pydantic.Field(
        None,
        description="folder of the Hugging Face hub (a BERT or RoBERTa), hf:NAME of one there, or folder of a finished "
        "run; null: it is trained, in <output_dir>/<run_name>/teacher",
    )
    steps: int = pydantic.Field(1000, gt=0, description="updates, if it is to be trained")
    model: MaskedLMConfig = BERT
    optimizer: OptimizerConfig = OptimizerConfig()


class DistillMaskedConfig(MaskedConfig):
    """A distillation of a masked language model."""

    teacher: MaskedTeacherConfig = MaskedTeacherConfig()
    student: EncoderStudentConfig = EncoderStudentConfig()
    scratch: ScratchConfig = ScratchConfig()
    tokens: int | None = pydantic.Field(
        None, gt=0, description="to train on, all stages together, by their shares; null: as many as their steps take"
    )
    stages: Annotated[tuple[MaskedStageChoice, ...], pydantic.Field(min_length=1)] = (AlignMasked(), MaskedLogits())

    def plan(self) -> tuple[Planned, ...]:
        """The stages in their places."""
        return plan(self.stages, batch_size=self.batch_size, seq_len=self.seq_len, tokens=self.tokens)

    def alone(self, name: str, model: MaskedLMConfig, steps: int, optimizer: OptimizerConfig) -> PretrainMaskedConfig:
        """A training below this run: same data, batches and seed; continued if it is there."""
        folder = Path(self.output_dir) / self.run_name / name
        return self.beside(PretrainMaskedConfig, folder, model=model, steps=steps, optimizer=optimizer)


def teacher_config(config: DistillMaskedConfig) -> MaskedLMConfig:
    """The teacher's. Raises ``UserError`` where it is no masked language model."""
    given = config.teacher
    return given.model if given.path is None else KIND.config_at(given.path)


def converted(config: DistillMaskedConfig, of: MaskedLMConfig) -> tuple[MaskedLM, MaskedLM]:
    """A fresh teacher of a config, and its student, which must take packed rows."""
    teacher = make_masked_lm(of)
    student = transfer(teacher, make_masked_lm(student_config(of, config.student)))
    rows = jnp.zeros((1, config.seq_len), jnp.int32)
    student(rows, mask=rows)
    return teacher, student


def distill(
    config: DistillMaskedConfig,
    run: Run,
    teacher: MaskedLM,
    student: MaskedLM,
    prepared: Prepared,
    masking: Masking,
    results: EncoderResults,
    rules: axes.Rules,
    stop: StopSignal,
) -> MaskedLM:
    """The stages, one after the other; what each leaves behind is scored."""
    teacher_graph, frozen = freeze(teacher, rules)
    graph = nnx.split(student)[0]

    def phase(place: Planned) -> Phase:
        found = stage_phase(place, place.stage, teacher_graph, graph, frozen)
        return dataclasses.replace(found, loss_fn=hiding(masking, cast(LossFn, found.loss_fn)))

    def about(phase: Phase) -> dict[str, Any]:
        return metadata(config, student.config, phase.trains, "masked_lm", tokenizer=prepared.tokenizer.about())

    return run_stages(
        config,
        run.folder,
        student,
        config.plan(),
        phase=phase,
        batches=lambda place: Batches(prepared.train, place.batch_size, config.seed),
        about=about,
        measure=results.measure,
        rules=rules,
        stop=stop,
    )


def run(config: DistillMaskedConfig, dry_run: bool = False) -> int:
    """The command."""
    of = teacher_config(config)
    teacher, student = abstractly(lambda: converted(config, of))
    check_stages((place.stage for place in config.plan()), student)
    if dry_run:
        for name, model in (("teacher", teacher), ("student", student)):
            print(f"{name}: {parameter_count(model):,} parameters")
        return 0

    def work(stop: StopSignal) -> None:
        with open_run(config.output_dir, config.run_name, config, resume=config.checkpoint.resume) as opened:
            _run(config, opened, of, student.config, stop)

    return attended(work, config.processes)


def _run(
    config: DistillMaskedConfig, opened: Run, of: MaskedLMConfig, wanted: MaskedLMConfig, stop: StopSignal
) -> None:
    given = config.teacher
    folder = None if given.path is None else checkpoint_folder(given.path) or Path(given.path)
    prepared = first_before_others(lambda: prepare_for(config, config.seq_len, folder, of.vocab_size))
    masking = masking_for(config, prepared, of)
    on_first(lambda: prepared.tokenizer.save(opened.folder))

    def score(model: MaskedLM, teacher: MaskedLM | None) -> dict[str, float | None]:
        found = masked_scores(model, config.validation(prepared), masking, teacher=teacher)
        return {
            "masked_accuracy": found.accuracy,
            "masked_bits": found.bits_per_token,
            "kl_bits": found.kl_bits,
            "agreement": found.agreement,
        }

    results = EncoderResults(opened.folder, score, stop)
    if given.path is not None:
        teacher = KIND.open(given.path)
    else:
        alone = config.alone("teacher", given.model, given.steps, given.optimizer)
        teacher = pretrain_masked(alone, prepared, stop=stop, name="teacher")
    results.measure("teacher", teacher)
    if config.scratch.train:
        tokens = sum(place.tokens for place in config.plan())
        steps = -(-tokens // (config.batch_size * config.seq_len))
        alone = config.alone("scratch", wanted, steps, config.scratch.optimizer)
        results.measure("student, from scratch", pretrain_masked(alone, prepared, stop=stop, name="scratch"))
    student = jax.jit(lambda model: transfer(model, make_masked_lm(wanted, config.seed)))(teacher)
    results.measure("student, converted", student)
    rules = make_rules(make_mesh(config.mesh))
    student = of_this_process(distill(config, opened, teacher, student, prepared, masking, results, rules, stop))

    def finish() -> None:
        card = results.write(
            "train.distill_masked",
            f"{config.run_name}: a Transformer distilled into {config.student.mixer.type_name}",
            lambda row: f"The student finds {row['masked_accuracy']:.1%} of the hidden tokens of validation text.",
            "fill-mask",
            corpus=prepared.meta["inputs"]["source"]["type"],
            seed=config.seed,
        )
        export_run(opened.folder, student, card=card)

    on_first(finish)


if __name__ == "__main__":
    command = "python -m train.distill_masked"
    sys.exit(main(DistillMaskedConfig, run, prog=command, description="Distills a masked language model."))
