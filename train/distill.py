"""Distills a Transformer into a student with other mixers: ``python -m train.distill CONFIG.yaml [key=value ...]``.

Teacher (trained, or reused), conversion, stages, the same student from scratch, and one table of them all. Repeating
the command continues a run that was stopped. Exit codes: 0 done, 2 a mistake in the config, 143 (130) after SIGTERM
(SIGINT) with everything saved.
"""

import sys
from collections.abc import Mapping
from functools import partial
from typing import Any

import jax
from flax import nnx

from effarch import axes
from effarch.config import main
from effarch.data.batches import Batches
from effarch.data.prepare import Prepared
from effarch.distill.frozen import freeze, in_dtype
from effarch.distill.plan import Planned
from effarch.distill.transfer import student_config, transfer
from effarch.eval.card import model_card
from effarch.experiment.abstractly import abstractly
from effarch.experiment.distill import DistillConfig, converted
from effarch.experiment.phases import stage_phase
from effarch.hub.export import export_run
from effarch.models.lm import LM, make_lm, parameter_count
from effarch.parallel.mesh import make_mesh
from effarch.parallel.processes import first_before_others, of_this_process, on_first
from effarch.parallel.rules import make_rules
from effarch.training.faults import StopSignal
from effarch.training.load import load_lm
from effarch.training.phase import Phase
from effarch.training.run import Run, open_run
from train.alone import attended
from train.answers import answered
from train.loop import metadata
from train.pretrain import evaluation, pretrain
from train.results import CONVERTED, SCRATCH, TEACHER, Results, windowed
from train.stages import check_stages, run_stages
from train.teacher import open_teacher, prepare_text


def distill(
    config: DistillConfig,
    run: Run,
    teacher: LM,
    student: LM,
    prepared: Prepared,
    results: Results,
    rules: axes.Rules,
    stop: StopSignal,
) -> LM:
    """The stages, one after the other; what each leaves behind is measured."""
    teacher = teacher if config.teacher.dtype is None else in_dtype(teacher, config.teacher.dtype)
    teacher_graph, frozen = freeze(teacher, rules)
    graph = nnx.split(student)[0]
    evaluate = evaluation(graph, prepared, config), config.eval.every

    def phase(place: Planned) -> Phase:
        stage = place.stage.ending_with(prepared.tokenizer.eos_id)
        return stage_phase(place, stage, teacher_graph, graph, frozen, *evaluate)

    def batches(place: Planned) -> Batches:
        same = place.seq_len == config.seq_len
        text = prepared if same else first_before_others(partial(prepare_text, config, place.seq_len))
        rows = Batches(text.train, place.batch_size, config.seed)
        return answered(place, rows, config.cache_dir, nnx.merge(teacher_graph, frozen), rules, stop)

    return run_stages(
        config,
        run.folder,
        student,
        config.plan(),
        phase=phase,
        batches=batches,
        about=lambda phase: metadata(config, student.config, phase.trains, tokenizer=prepared.tokenizer.about()),
        measure=results.measure,
        rules=rules,
        stop=stop,
    )


def run(config: DistillConfig, dry_run: bool = False, known: Mapping[str, dict[str, Any]] | None = None) -> int:
    """The command; ``known``: scores of models that need not be measured, as `Results` takes them."""
    if dry_run:
        for name, lm in zip(("teacher", "student"), _abstract(config), strict=True):
            print(f"{name}: {parameter_count(lm):,} parameters")
        return 0
    return attended(lambda stop: _run(config, stop, known or {}), config.processes)


def _abstract(config: DistillConfig) -> tuple[LM, LM]:
    """Teacher and student, nothing computed; what does not fit is said before anything is written."""
    teacher, student = abstractly(lambda: converted(config))
    check_stages((place.stage for place in config.plan()), student)
    return teacher, student


def _run(config: DistillConfig, stop: StopSignal, known: Mapping[str, dict[str, Any]]) -> None:
    wanted = _abstract(config)[1].config
    rules = make_rules(make_mesh(config.mesh))
    with open_run(config.output_dir, config.run_name, config, resume=config.checkpoint.resume) as run:
        prepared = first_before_others(lambda: prepare_text(config, config.seq_len))
        on_first(lambda: prepared.tokenizer.save(run.folder))
        teacher = open_teacher(config, prepared, stop)
        results = Results(run.folder, config, prepared, teacher, stop, known)
        results.measure(TEACHER, teacher)
        if config.teacher.dtype is not None:
            results.measure(f"teacher, {config.teacher.dtype}", in_dtype(teacher, config.teacher.dtype))
        window = student_config(teacher.config, windowed(config))
        results.measure(results.window_name, jax.jit(lambda lm: transfer(lm, make_lm(window)))(teacher))

        tokens = sum(place.tokens for place in config.plan())
        steps = -(-tokens // (config.batch_size * config.seq_len))
        if config.scratch.train:
            folder = run.folder / "scratch"
            alone = config.pretraining(folder, wanted, steps, config.scratch.optimizer)
            results.measure(SCRATCH, pretrain(alone, stop=stop, prepared=prepared, name="scratch"))

        student = jax.jit(lambda lm: transfer(lm, make_lm(wanted, config.seed)))(teacher)
        results.measure(CONVERTED, student)
        distill(config, run, teacher, student, prepared, results, rules, stop)
        student = of_this_process(load_lm(run.folder))

        def finish() -> None:
            report = results.write(student, config.sample_prompt)
            export_run(run.folder, student, card=model_card(report))

        on_first(finish)


if __name__ == "__main__":
    sys.exit(main(DistillConfig, run, prog="python -m train.distill", description="Distills a Transformer."))
