"""Every experiment in configs/ loads, and its models can be built."""

from functools import partial
from pathlib import Path

import jax
import pytest

from effarch.config import load
from effarch.distill.transfer import student_config
from effarch.experiment.config import PretrainConfig
from effarch.experiment.distill import DistillConfig, converted
from effarch.models.classifier import make_classifier
from effarch.models.lm import make_lm
from effarch.plan.compare import CompareConfig
from effarch.training.optimizer import make_optimizer
from train.classify import ClassifyConfig
from train.distill_classifier import DistillClassifierConfig
from train.distill_classifier import converted as converted_classifier
from train.distill_masked import DistillMaskedConfig
from train.distill_masked import converted as converted_masked
from train.recipes import RecipesConfig
from train.stages import check_stages
from train.sweep import SweepConfig

ROOT = Path(__file__).parent.parent
FILES = sorted((ROOT / "configs").rglob("*.yaml"))
COMMANDS = {
    "train.classify": ClassifyConfig,
    "train.distill": DistillConfig,
    "train.distill_classifier": DistillClassifierConfig,
    "train.distill_masked": DistillMaskedConfig,
    "train.pretrain": PretrainConfig,
    "train.recipes": RecipesConfig,
    "train.sweep": SweepConfig,
}


def test_there_are_some():
    assert "quickstart.yaml" in {path.name for path in FILES}


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.relative_to(ROOT / "configs").with_suffix("").as_posix())
def test_config_builds(path, monkeypatch):
    """The header names the command that runs it."""
    header = path.read_text().split("run_name")[0]
    if f"effarch plan compare {path.relative_to(ROOT)}" in header:
        monkeypatch.chdir(ROOT)
        assert load(CompareConfig, path).plans()
        return
    (module,) = [module for module in COMMANDS if f"python -m {module} {path.relative_to(ROOT)}" in header]
    config = load(COMMANDS[module], path)
    if module == "train.classify":
        jax.eval_shape(partial(make_classifier, config.model))
        make_optimizer(config.optimizer, config.steps)
        return
    if module == "train.recipes":
        monkeypatch.chdir(ROOT)
        assert config.runs(Path("runs"))
        return
    if module == "train.pretrain":
        jax.eval_shape(partial(make_lm, config.model))
        return
    if module == "train.sweep":
        for model in config.models().values():
            jax.eval_shape(partial(make_lm, model))
        return
    if module in ("train.distill_classifier", "train.distill_masked"):
        make = converted_classifier if module == "train.distill_classifier" else converted_masked
        _, student = jax.eval_shape(partial(make, config, config.teacher.model))
        check_stages(config.stages, student)
        return
    _, student = jax.eval_shape(partial(converted, config))
    assert student.config == student_config(config.teacher.model, config.student)
    check_stages((place.stage for place in config.plan()), student)
