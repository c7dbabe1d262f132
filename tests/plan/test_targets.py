"""Real steps of real sizes, compiled by the compilers of TPUs and GPUs: they fit, and say what they hold and send.

1.3 B parameters, rows of 8192 tokens, 16 chips; and one row of up to a million. Minutes each: `slow`. Skipped without
a compiler (the extras `tpu` and `cuda12`). The plans are those of `effarch plan compare configs/plans_*.yaml`.
"""

from pathlib import Path

import pytest

from effarch.bench.topology import parse
from effarch.config import load
from effarch.plan.compare import CompareConfig
from effarch.plan.config import PlanOptions
from effarch.plan.outcome import Plan
from effarch.plan.run import plan

ROOT = Path(__file__).parents[2]


def asked(file: str) -> list:
    """Every plan of a comparison, by the run's name, the target's, and the overrides that only the target has."""
    with pytest.MonkeyPatch.context() as patched:
        patched.chdir(ROOT)  # the file names its runs from there
        config = load(CompareConfig, f"configs/{file}")
        plans = zip(config.plans(), config.targets * len(config.runs), strict=True)
        return [pytest.param(options, id=" ".join((name, on.target, *on.overrides))) for (name, options), on in plans]


def compiled(options: PlanOptions) -> Plan:
    """The plan; a reason to skip where its compiler is not installed."""
    if reason := parse(options.target).missing():
        pytest.skip(reason)
    return plan(options.planned_run(), options.target)


@pytest.mark.slow
@pytest.mark.parametrize("options", asked("plans_1b3.yaml"))
def test_training_fits(options):
    found = compiled(options)
    (step,) = found.steps
    assert found.fits and 1.25e9 < found.parameters < 1.45e9 and found.chips == 16
    assert step.seq_len == 8192 and step.needed < found.memory
    share = 4 * found.parameters / 16  # float32, split, but what has no side as wide as the model (halves of low ranks)
    assert share <= step.held["parameters"] < 1.35 * share
    assert step.held["optimizer"] == pytest.approx(2 * step.held["parameters"], rel=0.01)
    kinds = {said.kind for said in step.collectives}
    assert "all-gather" in kinds and kinds & {"reduce-scatter", "all-reduce"}
    sent = sum(said.sent for said in step.collectives)
    assert sent < 6 * 2 * found.parameters, "more than three times the parameters and their gradients, in bfloat16"
    least = 3 * 2 * found.parameters * step.tokens / 16 / 989e12
    assert step.step_seconds > 0.8 * least, "faster than any of the chips can multiply"


@pytest.mark.slow
@pytest.mark.parametrize("options", asked("plans_distill.yaml"))
def test_both_stages_of_a_distillation_fit(options):
    found = compiled(options)
    align, logits = found.steps
    assert found.fits and (align.name, logits.name) == ("align", "logits")
    for step in found.steps:
        teacher = step.held["teacher"]
        assert 2 * 1.25e9 / 16 < teacher < 2 * 1.5e9 / 16, "in bfloat16, split over the chips"
        assert step.needed < found.memory
    assert align.held["optimizer"] < 0.6 * logits.held["optimizer"], "an alignment moves mixers alone"


@pytest.mark.slow
@pytest.mark.parametrize("options", asked("plans_context.yaml"))
def test_a_long_row_split_over_the_context_axis_fits(options):
    found = compiled(options)
    (step,) = found.steps
    assert found.fits and found.mesh["context"] == 16 and step.tokens == step.seq_len <= 2**20
    assert step.needed < found.memory
