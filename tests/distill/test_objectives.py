"""Alignment and logits objectives, and what a step of each may change."""

import dataclasses
from functools import lru_cache, partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from effarch.data.targets import shift
from effarch.distill import layerwise, objectives
from effarch.distill.hidden import HiddenLoss
from effarch.distill.losses import LogitLoss
from effarch.distill.stages import Align, Logits
from effarch.distill.transfer import StudentConfig, student_config, transfer
from effarch.mixers.base import Context
from effarch.training.optimizer import OptimizerConfig
from effarch.training.state import make_state
from effarch.training.step import make_step
from tests.conformance.test_mixers import same_trees
from tests.models import tiny
from tests.tolerances import TOL, assert_close

B, T = 4, 40
TEACHER = tiny.config("softmax_attention", layers=4)
STUDENTS = {
    "rwkv7": StudentConfig(mixer="rwkv7"),
    "hybrid": StudentConfig(mixer="retnet", pattern=("mixer", "teacher", "mixer")),
    "hedgehog": StudentConfig(mixer="hedgehog"),
    "same": StudentConfig(mixer="softmax_attention"),
}


def batch() -> dict:
    """Two documents and padding in a row; some targets do not count."""
    ids = np.asarray([[1] * 25 + [2] * 15, [1] * 40, [0] * 10 + [1] * 30, [1] * 20 + [0] * 20], np.int32)
    mask = (ids > 0) & (np.random.default_rng(0).random((B, T)) < 0.8)
    return {
        "tokens": tiny.tokens(B, T, seed=2),
        "segment_ids": jnp.asarray(ids),
        "loss_mask": jnp.asarray(mask, jnp.float32),
    }


@lru_cache
def models(name: str):
    """``(teacher, student)``; what the transfer does not set is noise."""
    teacher = tiny.model(TEACHER)
    fresh = tiny.model(student_config(TEACHER, STUDENTS[name]))
    return teacher, transfer(teacher, fresh)


@lru_cache
def compiled(name: str, kind: str):
    """``value_and_grad`` for the student's parameters and the teacher's, and what to call it with."""
    teacher, student = models(name)
    teacher_graph, frozen = nnx.split(teacher)
    graph, params, rest = nnx.split(student, nnx.Param, ...)
    make = {
        "align": partial(layerwise.align, config=HiddenLoss()),
        "logits": partial(objectives.logits, config=LogitLoss(), chunk=16, vocab_chunk=10),
    }
    loss = make[kind](teacher_graph, graph)

    def total(params, frozen, batch):
        total, weight, metrics = loss(params, rest, batch, jax.random.key(0), frozen)
        return total, (weight, metrics)

    run = jax.jit(jax.value_and_grad(total, argnums=(0, 1), has_aux=True), compiler_options=tiny.FAST)
    return lambda batch: run(params, frozen, batch)


@partial(jax.jit, static_argnums=(0, 1), compiler_options=tiny.FAST)
def layer_by_layer(teacher_graph, graph, frozen, params, tokens, segment_ids):
    """``(the student's output, the teacher's)`` of every mixer, on the teacher's input of it."""
    teacher, student = nnx.merge(teacher_graph, frozen), nnx.merge(graph, params)
    ctx, _ = Context.of(B, T, segment_ids=segment_ids)
    x, theirs, mine = teacher.embed(tokens), ctx, ctx
    pairs = []
    for old, new in zip(teacher.stack.layers(), student.stack.layers(), strict=True):
        out, _, mine = new.mixer(new.mixer_norm(x), None, mine)
        wanted, _, _ = old.mixer(old.mixer_norm(x), None, dataclasses.replace(ctx, shared=theirs.shared))
        x, _, theirs, _ = old(x, None, theirs)
        pairs.append((out, wanted))
    return pairs


def naive_alignment(teacher, student, batch):
    """Layer by layer, every position by itself."""
    (teacher_graph, frozen), (graph, params) = nnx.split(teacher), nnx.split(student)
    pairs = layer_by_layer(teacher_graph, graph, frozen, params, batch["tokens"], batch["segment_ids"])
    real = np.asarray(batch["segment_ids"]) > 0
    losses = []
    for pair in pairs:
        out, wanted = (np.asarray(x, np.float64)[real] for x in pair)
        losses.append((((out - wanted) ** 2).mean(axis=1) / (wanted.var(axis=1) + 1e-6)).sum())
    return np.mean(losses), real.sum()


@pytest.mark.parametrize("name", [pytest.param("rwkv7", marks=pytest.mark.slow), "hybrid"])
def test_alignment_is_that_of_every_layer_on_the_teachers_input(name):
    """Stacks of different layouts are scanned together; RWKV-7's first value is the student's own."""
    data = batch()
    (total, (weight, metrics)), (grads, _) = compiled(name, "align")(data)
    expected, tokens = naive_alignment(*models(name), data)
    assert_close(total, expected, TOL.f32_forward)
    assert float(weight) == tokens and set(metrics) == {"mse"}
    assert_close(metrics["mse"], expected, TOL.f32_forward)
    grads = jax.tree.map(np.asarray, grads)
    for path, leaf in jax.tree.leaves_with_path(grads):
        own = {"mixer", "mixer_norm"} & {getattr(key, "key", None) for key in path}
        assert np.isfinite(leaf).all()
        assert own or (leaf == 0).all(), jax.tree_util.keystr(path)
    moved = [x for path, x in jax.tree.leaves_with_path(grads) if "mixer" in {getattr(k, "key", None) for k in path}]
    assert sum(bool((x != 0).any()) for x in moved) > 0.7 * len(moved)


def test_a_student_that_is_the_teacher_loses_nothing():
    """The divergence is exactly 0; so is its gradient, and the alignment."""
    (total, (weight, _)), (grads, _) = compiled("same", "logits")(batch())
    assert total == 0 and weight > 0
    assert all(np.abs(x).max() < 1e-5 for x in jax.tree.leaves(grads))
    (total, (weight, _)), _ = compiled("same", "align")(batch())
    assert abs(float(total)) < 1e-9 and float(weight) == int((batch()["segment_ids"] > 0).sum())


def test_logits_are_the_divergence_where_the_text_supervises():
    data = batch()
    (total, (weight, metrics)), (grads, teacher_grads) = compiled("hybrid", "logits")(data)
    teacher, student = models("hybrid")
    _, _, mask = shift(data)
    logs = []
    for lm in models("hybrid"):
        graph, params = nnx.split(lm)
        hidden = tiny.hidden(graph, "chunkwise", (), params, data["tokens"], None, data["segment_ids"]).hidden
        logs.append(np.asarray(jax.nn.log_softmax(lm.head(hidden), axis=-1), np.float64))
    kl = (np.exp(logs[0]) * (logs[0] - logs[1])).sum(axis=-1) * np.asarray(mask)
    assert_close(total, kl.sum(), TOL.f32_forward)
    assert float(weight) == float(mask.sum()) and set(metrics) == {"forward_kl"}
    assert all((np.asarray(x) == 0).all() for x in jax.tree.leaves(teacher_grads))
    assert all((np.asarray(x) != 0).any() for x in jax.tree.leaves(grads))


@pytest.mark.parametrize("kind", ["align", "logits"])
def test_micro_batches_add_up(kind):
    run, data = compiled("hybrid", kind), batch()
    whole, (grads, _) = run(data)
    # Rows of padding fill the micro-batches up: one compilation.
    parts = [jax.tree.map(lambda x, rows=rows: x * rows[:, None].astype(x.dtype), data) for rows in _rows()]
    halves = [run(part) for part in parts]
    same_trees(jax.tree.map(jnp.add, *(value for value, _ in halves)), whole, TOL.f32_forward)
    same_trees(jax.tree.map(jnp.add, *(g[0] for _, g in halves)), grads, TOL.f32_grad)


def _rows():
    first = jnp.asarray([True, True, False, False])
    return first, ~first


def steps(stage, name: str, count: int):
    """Losses of some updates, and the parameters before and after."""
    teacher, student = models(name)
    teacher_graph, frozen = nnx.split(teacher)
    graph, params, rest = stage.trains.split(student)
    tx, _ = stage.transformation()
    loss = stage.trains.loss(stage.objective(teacher_graph, graph))
    step = jax.jit(make_step(loss, tx), compiler_options=tiny.FAST)
    state = make_state(params, rest, tx, 0)
    losses = []
    for _ in range(count):
        state, metrics = step(state, batch(), frozen)
        losses.append(float(metrics["loss"]))
    before, after = (stage.trains.model(graph, x.params, x.rest) for x in (make_state(params, rest, tx, 0), state))
    return losses, nnx.split(before, nnx.Param, ...)[1], nnx.split(after, nnx.Param, ...)[1]


OPTIMIZER = OptimizerConfig(learning_rate=3e-3, weight_decay=0.3)


def test_alignment_learns_and_moves_mixers_and_their_norms_only():
    """Bit-identical elsewhere, despite weight decay."""
    losses, before, after = steps(Align(steps=20, optimizer=OPTIMIZER), "hybrid", 20)
    before, after = jax.tree.map(np.asarray, (before, after))
    assert losses[-1] < 0.8 * losses[0]
    for (path, x), y in zip(jax.tree.leaves_with_path(before), jax.tree.leaves(after), strict=True):
        own = {"mixer", "mixer_norm"} & {getattr(key, "key", None) for key in path}
        assert bool(own) == bool((x != y).any()), jax.tree_util.keystr(path)


def test_logits_learn_and_move_everything():
    losses, before, after = steps(Logits(steps=10, optimizer=OPTIMIZER), "hybrid", 10)
    before, after = jax.tree.map(np.asarray, (before, after))
    assert losses[-1] < 0.9 * losses[0]
    for (path, x), y in zip(jax.tree.leaves_with_path(before), jax.tree.leaves(after), strict=True):
        assert (x != y).any(), jax.tree_util.keystr(path)
