"""Planned steps are those that run: the same program, on arrays of the same bytes on every device."""

from functools import partial
from types import SimpleNamespace

import jax
import numpy as np
import pytest
from flax import nnx

import effarch.mixers  # noqa: F401  (registers)
import effarch.plan.examine
from effarch.bench.compiled import Counts, Memory, memory
from effarch.bench.estimate import Built
from effarch.bench.topology import parse
from effarch.config import UserError
from effarch.data.rows import FIELDS, LOADED_AS
from effarch.experiment.phases import pretraining
from effarch.models.lm import make_lm, parameter_count
from effarch.parallel.sharding import put_batch
from effarch.plan.examine import device_bytes, examine, rules_for, step_of
from effarch.plan.models import model_of
from effarch.plan.steps import Step
from effarch.training.phase import shardings, start
from tests.plan import tiny

CPU = parse("cpu:8")


@pytest.fixture(scope="module")
def config():
    return tiny.pretrain()


@pytest.fixture(scope="module")
def rules(config):
    return rules_for(config, CPU)


@pytest.fixture(scope="module")
def planned(config, rules):
    return examine("train", step_of(config, "train", 0, {}, rules), CPU)


def test_a_plan_against_what_the_loop_compiles(config, rules, planned):
    make = partial(make_lm, config.model, config.seed)
    phase = pretraining(config, nnx.split(jax.eval_shape(make), nnx.Param, ...)[0])
    state = start(phase, make, config.seed, rules)
    rows = {name: np.ones((config.batch_size, config.seq_len), LOADED_AS[name]) for name in FIELDS}
    batch = put_batch(rows, rules)
    compiled = phase.step(shardings(phase, make, config.seed, rules), rules).lower(state, batch).compile()

    first = jax.devices()[0]
    on_first = [
        s.data.nbytes for x in jax.tree.leaves((state, batch)) for s in x.addressable_shards if s.device == first
    ]
    assert sum(planned.held.values()) == sum(on_first)
    assert planned.needed == pytest.approx(memory(compiled).total, rel=0.1)
    assert planned.fits and planned.reason == ""


def test_memory_is_split_over_devices(config, planned):
    count = parameter_count(jax.eval_shape(partial(make_lm, config.model)))
    halves = 4 * count / 4  # float32 over the four of fsdp, but what is small or odd
    assert halves <= planned.held["parameters"] <= 1.1 * halves
    assert planned.held["optimizer"] == pytest.approx(2 * planned.held["parameters"], rel=0.02)
    assert planned.held["batch"] == len(FIELDS) * 4 * config.batch_size * config.seq_len // 8
    assert set(planned.held) == {"parameters", "optimizer", "batch"}
    assert 0 < planned.activations and 0 < planned.temporaries and 0 <= planned.outputs < 1024


def test_work_and_talk_are_counted(config, planned):
    useful = 3 * config.batch_size * config.model.flops(config.seq_len) / 8
    assert 0.5 * useful < planned.flops < 3 * useful
    said = {row.kind: row for row in planned.collectives}
    assert "all-gather" in said and {"all-reduce", "reduce-scatter"} & set(said)
    assert all(row.calls > 0 and row.bytes > 0 and row.sent > 0 for row in planned.collectives)
    assert planned.seconds == {} and planned.step_seconds is None and planned.tokens_per_s is None


def test_what_the_backward_pass_keeps_grows_with_rows_and_shrinks_with_parts(config, rules, planned):
    def kept(**sizes) -> int:
        return step_of(config.replace(**sizes), "train", 0, {}, rules).activations

    head = 4 * config.model.dim * config.model.vocab_size  # gathered for all chunks of the loss, whatever the rows
    rows = planned.activations - head
    assert kept(batch_size=32) == pytest.approx(head + 4 * rows, rel=0.02)  # 32 is the width and the length, too
    assert kept(batch_size=32, grad_accum=4) == pytest.approx(planned.activations, rel=0.02)
    assert kept(model=config.model.replace(remat="full")) < 0.7 * planned.activations
    wide = 3 * 32 * (32 + 64) * 4  # at the least what three projections and the feed-forward layer read and write
    assert wide < planned.activations < 40 * wide


def test_stages_of_a_distillation_hold_their_teacher():
    config = tiny.distill("stages=[{type: align, steps: 2}, {type: logits, steps: 2, cache: {top_k: 8}}]")
    rules = rules_for(config, CPU)
    align, logits = (step_of(config, "train", number, {}, rules) for number in (0, 1))
    teacher = parameter_count(jax.eval_shape(partial(make_lm, config.teacher.model)))
    assert device_bytes(align.parts["teacher"]) == pytest.approx(4 * teacher / 4, rel=0.1)
    assert "teacher" not in logits.parts
    assert logits.arguments[1]["teacher"].indices.shape == (8, 32, 8)
    moments = [device_bytes(step.parts["optimizer"]) for step in (align, logits)]
    assert moments[0] < moments[1], "an alignment moves mixers alone"
    assert step_of(config, "train", 0, {"seq_len": 64}, rules).tokens == 8 * 64


def test_decoding_carries_its_state_in_place(config, rules):
    found = examine("decode", step_of(config, "decode", 0, {}, rules), CPU)
    state = model_of(config).state_bytes(config.seq_len)  # of a row; a row per device
    assert state <= found.held["state"] <= state + 64
    assert found.tokens == config.batch_size and found.activations is None
    assert found.outputs <= 64 and found.held["batch"] == 4


def test_a_prompt_is_read_and_its_state_left(config, rules):
    found = examine("prefill", step_of(config, "prefill", 0, {}, rules), CPU)
    assert found.tokens == config.batch_size * config.seq_len
    assert model_of(config).state_bytes(config.seq_len) <= found.outputs


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (["batch_size=12"], r"batch_size: expected a multiple of 8 \(mesh.data \* mesh.fsdp\), got 12 rows"),
        (["mesh={data: 3, fsdp: 4}"], "mesh: expected .* = 8 devices, got 12"),
        (["model.vocab_size=100"], "vocab_size: expected at least"),
    ],
)
def test_what_does_not_divide_is_one_line(change, message):
    config = tiny.pretrain(*change)
    with pytest.raises(UserError, match=message):
        step_of(config, "train", 0, {}, rules_for(config, CPU))


def test_what_kernels_hide_is_estimated_by_formula(monkeypatch):
    """A program that is not compiled: nothing but what examine makes of the compiler's answer."""
    v5e = parse("v5e:2x2")
    stub = Step(SimpleNamespace(lower=lambda: None), (), {}, 8, 32, 256, 4 * 197 * 10**12, "bf16")
    for counted, source, seconds in (
        (Counts({"bf16": 1}, 819 * 10**9, 3, ("kernel",)), "formula", {"compute": 1, "memory": 1, "network": 0}),
        (Counts(None, None, None), "formula", {"compute": 1, "memory": 0, "network": 0}),
        (Counts({"bf16": 394 * 10**12}, 0, 3), "compiled", {"compute": 2, "memory": 0, "network": 0}),
    ):
        built = Built(Memory(5, 0, 7, 0), counted, 0.5, 12, True)
        monkeypatch.setattr(effarch.plan.examine, "build", lambda target, lowered, built=built: built)
        found = examine("train", stub, v5e)
        assert (found.source, found.seconds, found.needed) == (source, seconds, 12)
        assert found.tokens_per_s == 256 / max(seconds.values())
