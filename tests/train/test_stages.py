"""Stages of every kind in one run, stopped in the middle of each: parameters to the bit of an undisturbed run."""

from functools import cache

import jax
import numpy as np
import pytest
from flax import nnx

import train.distill
import train.loop
import train.stages
from effarch.config import load
from effarch.data.prepare import prepare
from effarch.distill.transfer import StudentConfig, student_config, transfer
from effarch.models.lm import LM, LMConfig, make_lm
from effarch.parallel.mesh import make_mesh
from effarch.parallel.rules import make_rules
from effarch.training import phase as phases
from effarch.training.load import load_lm
from effarch.training.run import open_run
from tests.models.tiny import FAST
from tests.train import tiny

ALIGN = "{type: align, steps: 3}"
ADAPT = "{type: logits, steps: 3, trains: {type: lora, rank: 2, channel: [up]}}"
WRITE = "{type: on_policy, steps: 3, fraction: 0.7, trains: {type: all, frozen: [embedding]}}"
LONGER = "{type: logits, steps: 3, seq_len: 96, batch_size: 4, loss: {kind: jensen_shannon, cross_entropy: 0.5}}"
BOTH = "{type: on_policy, steps: 3, seq_len: 48, batch_size: 4, trains: {type: lora, rank: 2, channel: [up]}}"
TEXT = "{type: cross_entropy, steps: 2, trains: {type: all, frozen: [embedding]}}"


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    return tmp_path_factory.mktemp("stages")


@pytest.fixture(scope="module")
def files(root) -> str:
    return tiny.corpus(root / "corpus")


class Stop:
    """A signal that comes during a step."""

    exit_code = 143

    def __init__(self, at: int | None) -> None:
        self.at, self.requested = at, False


class Unmeasured:
    """In the place of the results: what was to be measured, and the models."""

    def __init__(self) -> None:
        self.models: dict[str, nnx.State] = {}

    def measure(self, name: str, lm) -> None:
        self.models[name] = nnx.split(lm)[1]


@pytest.fixture
def compile_once(monkeypatch):
    """The step of a phase is compiled by the first run that comes to it: what these tests would spend their time on."""
    steps, now, compile_step, make = {}, [], phases.jit_step, train.distill.stage_phase

    def phase(place, *args):
        now[:] = [place.name]
        return make(place, *args)

    def jit_step(*args):
        if now[0] not in steps:
            steps[now[0]] = compile_step(*args)
        return steps[now[0]]

    monkeypatch.setattr(train.distill, "stage_phase", phase)
    monkeypatch.setattr(phases, "jit_step", jit_step)


@cache
def models(teacher: LMConfig, student: StudentConfig) -> tuple[LM, LM]:
    """A teacher and its student, fresh."""

    def both() -> tuple[LM, LM]:
        lm = make_lm(teacher)
        return lm, transfer(lm, make_lm(student_config(teacher, student)))

    return jax.jit(both, compiler_options=FAST)()


def distill(root, files, stages: str, name: str, at: int | None, monkeypatch) -> Unmeasured | None:
    """The stages of a run, or (None) as far as step ``at``, during which a signal comes."""
    arguments = tiny.distill(root, files, f"stages=[{stages}]", f"run_name={name}", "mesh.data=1", "mesh.fsdp=2")
    config = load(train.distill.DistillConfig, None, arguments)
    teacher, student = models(config.teacher.model, config.student)
    prepared = prepare(config.data, config.seq_len, config.cache_dir)
    rules = make_rules(make_mesh(config.mesh, jax.devices()[:2]))
    stop, results = Stop(at), Unmeasured()

    def after(self, step, metrics):
        stop.requested = step == stop.at

    monkeypatch.setattr(train.stages.Profiler, "after", after)
    with open_run(config.output_dir, name, config) as run:
        try:
            train.distill.distill(config, run, teacher, student, prepared, results, rules, stop)
        except train.loop.Stopped:
            return None
    return results


def bits(state) -> dict:
    return {path: np.asarray(x[...]).tobytes() for path, x in nnx.to_flat_state(state)}


def stopped_and_whole(root, files, stages: str, stops: tuple[int, ...], monkeypatch) -> tuple[dict, dict]:
    """``(models after each stage of an undisturbed run, models read while it was stopped)``; the ends are equal."""
    whole = distill(root, files, stages, "whole", None, monkeypatch).models
    folder, seen = root / "runs" / "stopped", {}
    for at in stops:
        assert distill(root, files, stages, "stopped", at, monkeypatch) is None
        assert tiny.checkpoint_steps(folder)[-1] == at
        seen[at] = load_lm(folder)
    rest = distill(root, files, stages, "stopped", None, monkeypatch).models
    last = list(whole)[-1]
    assert last in rest and all(bits(state) == bits(whole[name]) for name, state in rest.items())
    assert tiny.contents(folder) == tiny.contents(root / "runs" / "whole")
    assert bits(nnx.split(load_lm(folder))[1]) == bits(whole[last])
    return {name: bits(state) for name, state in whole.items()}, {at: bits(nnx.split(lm)[1]) for at, lm in seen.items()}


def test_a_run_that_was_stopped_is_the_undisturbed_run(root, files, monkeypatch, compile_once):
    """Adapters on samples in shorter rows, then the text; what is saved in the middle is read as an ordinary model."""
    whole, seen = stopped_and_whole(root, files, f"{BOTH}, {TEXT}", (2,), monkeypatch)
    adapted, tuned = whole["student, after on_policy"], whole["student, after cross_entropy"]
    moved = {path[-2] for path, x in seen[2].items() if x != adapted[path]}
    assert moved == {"q", "k", "v", "o", "up"}
    frozen = {path for path in adapted if "embedding" in path}
    assert {path for path, x in adapted.items() if x == tuned[path]} == frozen != set()


@pytest.mark.slow
def test_four_stages_stopped_in_each(root, files, monkeypatch):
    """Every run compiles for itself; stopped in the middle of each stage, at its end, and in the middle again."""
    stages = ", ".join((ALIGN, ADAPT, WRITE, LONGER))
    whole, seen = stopped_and_whole(root / "four", files, stages, (2, 3, 5, 6, 8, 11), monkeypatch)
    assert seen[6] == whole["student, after logits"]  # at the end of adapters, merged
    assert list(whole) == [f"student, after {name}" for name in ("align", "logits", "on_policy", "logits 2")]
    states = list(whole.values())
    assert all(before != after for before, after in zip(states[:-1], states[1:], strict=True))
