"""A stage that reads its teacher's answers from the disk, in the real loop: the student of a live teacher."""

from types import SimpleNamespace

import jax
import numpy as np
import pytest
from flax import nnx

from effarch.config import load
from effarch.data.prepare import prepare
from effarch.distill import cache_build
from effarch.distill.transfer import student_config, transfer
from effarch.experiment.distill import DistillConfig
from effarch.models.lm import make_lm
from effarch.parallel.mesh import make_mesh
from effarch.parallel.rules import make_rules
from effarch.training.run import open_run
from tests.tolerances import relative_error
from tests.train import tiny
from train.distill import distill
from train.loop import Stopped

RESULTS = SimpleNamespace(measure=lambda *_: None)
RUNNING = SimpleNamespace(requested=False, exit_code=0)


class StopAfter:
    """A signal that comes at the n-th look."""

    exit_code = 143

    def __init__(self, looks: int) -> None:
        self.looks = looks

    @property
    def requested(self) -> bool:
        self.looks -= 1
        return self.looks < 0


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    root = tmp_path_factory.mktemp("cached")
    tiny.corpus(root / "corpus")
    return root


@pytest.fixture(scope="module")
def models(root):
    config = configured(root, "any", "null")

    @jax.jit
    def make():
        teacher = make_lm(config.teacher.model)
        return teacher, transfer(teacher, make_lm(student_config(teacher.config, config.student), 1))

    return make()


def configured(root, name: str, cache: str) -> DistillConfig:
    stage = f"{{type: logits, steps: 3, cache: {cache}, optimizer: {{warmup_steps: 1}}, loss: {{temperature: 2.0}}}}"
    words = [f"stages=[{stage}]", f"run_name={name}", "checkpoint.every=1"]
    return load(DistillConfig, None, tiny.distill(root, str(root / "corpus" / "*.txt"), *words))


def run(root, models, name: str, cache: str, stop=RUNNING) -> np.ndarray:
    """The parameters after the stage."""
    config = configured(root, name, cache)
    prepared = prepare(config.data, config.seq_len, config.cache_dir)
    rules = make_rules(make_mesh(config.mesh, jax.devices()[:1]))
    with open_run(config.output_dir, config.run_name, config) as folder:
        student = distill(config, folder, *models, prepared, RESULTS, rules, stop)
    return np.concatenate([np.asarray(x).ravel() for x in jax.tree.leaves(nnx.split(student, nnx.Param, ...)[1])])


def distance(root, models) -> tuple[np.ndarray, float]:
    """The student of a live teacher, and how far it moved."""
    live = run(root, models, "live", "null")
    before = np.concatenate([np.asarray(x).ravel() for x in jax.tree.leaves(nnx.split(models[1], nnx.Param, ...)[1])])
    return live, relative_error(live, before)


def test_the_student_is_that_of_a_live_teacher(root, models):
    """All tokens kept: the same parameters after three steps."""
    live, moved = distance(root, models)
    assert moved > 1e-3
    assert relative_error(run(root, models, "whole", "{top_k: 258, bits: 32}"), live) < 1e-5


@pytest.mark.slow
def test_what_was_stopped_goes_on_and_asks_nothing_twice(root, models, monkeypatch, capsys):
    cache = "{top_k: 240, bits: 8}"
    with pytest.raises(Stopped) as stopped:  # while the cache is written
        run(root, models, "some", cache, StopAfter(1))
    assert stopped.value.code == 143
    with pytest.raises(Stopped):  # in the second step
        run(root, models, "some", cache, StopAfter(3))
    assert tiny.checkpoint_steps(root / "runs" / "some")[-1] == 2
    monkeypatch.setattr(cache_build, "_answers", lambda *_: 1 / 0)
    capsys.readouterr()
    some = run(root, models, "some", cache)
    assert "log-probability is off by at most" in capsys.readouterr().err
    live, moved = distance(root, models)
    assert 1e-7 < relative_error(some, live) < 0.2 * moved
    np.testing.assert_array_equal(run(root, models, "again", cache), some)
