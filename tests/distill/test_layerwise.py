"""Mixing matrices, outputs of blocks, and the stack in which layers change hands."""

from functools import lru_cache, partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from effarch.config import Config, UserError, load
from effarch.data.targets import shift
from effarch.distill import layerwise
from effarch.distill.hidden import HiddenLoss
from effarch.distill.losses import LogitLoss
from effarch.distill.matrices import MatrixLoss, matrix_loss
from effarch.distill.stages import AttentionMaps, Orient, StageChoice
from effarch.mixers.base import Context
from effarch.training.optimizer import OptimizerConfig
from effarch.training.state import make_state
from effarch.training.step import make_step
from effarch.training.trainable import All
from tests.distill.test_objectives import batch, models
from tests.models import tiny
from tests.tolerances import TOL, assert_close

STEPS = 8
MAPS = {"phi_q", "phi_k"}
LOSSES = {
    "orient": partial(layerwise.matrices, config=MatrixLoss()),
    "attention_maps": partial(layerwise.matrices, config=MatrixLoss(kind="cross_entropy")),
    "block_out": partial(layerwise.align, config=HiddenLoss(normalize=False), target="block_out"),
}


def names(path) -> set[str]:
    return {str(getattr(key, "key", "")) for key in path}


@lru_cache
def compiled(name: str, kind: str):
    """``value_and_grad`` for the student's parameters."""
    teacher, student = models(name)
    teacher_graph, frozen = nnx.split(teacher)
    graph, params, rest = nnx.split(student, nnx.Param, ...)
    loss = LOSSES[kind](teacher_graph, graph)

    def total(params, batch):
        total, weight, metrics = loss(params, rest, batch, jax.random.key(0), frozen)
        return total, (weight, metrics)

    run = jax.jit(jax.value_and_grad(total, has_aux=True), compiler_options=tiny.FAST)
    return lambda batch: run(params, batch)


@partial(jax.jit, static_argnums=0, compiler_options=tiny.FAST)
def layer(graph, block, x, segment_ids):
    """A block's output and its mixing matrix."""
    block = nnx.merge(graph, block)
    ctx, _ = Context.of(*x.shape[:2], segment_ids=segment_ids)
    return block(x, None, ctx)[0], block.mixer.mixing_matrix(block.mixer_norm(x), ctx)


def pairs(name: str, data: dict):
    """For each layer, on the teacher's input: ``(output, matrix)`` of the teacher and of the student."""
    teacher, student = models(name)
    x, found = teacher.embed(data["tokens"]), []
    for blocks in zip(teacher.stack.layers(), student.stack.layers(), strict=True):
        found.append([layer(*nnx.split(block), x, data["segment_ids"]) for block in blocks])
        x = found[-1][0][0]
    return found


@pytest.mark.parametrize(
    ("name", "kind"), [pytest.param("hybrid", "orient", marks=pytest.mark.slow), ("hedgehog", "attention_maps")]
)
def test_matrices_of_every_replaced_layer_on_the_teachers_input(name, kind):
    """In numpy, row by row; a layer that is kept does not count, and documents do not see each other."""
    data = batch()
    (total, (weight, metrics)), grads = compiled(name, kind)(data)
    real = np.asarray(data["segment_ids"]) > 0
    losses = []
    for (_, theirs), (_, mine) in pairs(name, data):
        theirs, mine = (np.asarray(x, np.float64) for x in (theirs, mine))
        if kind == "orient":
            row = ((theirs - mine) ** 2).sum(-1)
        else:
            row = np.where(theirs > 0, theirs * np.log(np.maximum(theirs, 1e-8) / np.maximum(mine, 1e-8)), 0).sum(-1)
            assert_close(mine.sum(-1)[:, 0], real, TOL.f32_forward)
        losses.append(row.mean(1)[real].sum())
    kept = [1] if name == "hybrid" else []
    assert all(losses[i] == 0 for i in kept)
    wanted = sum(losses) / (len(losses) - len(kept))
    assert_close(total, wanted, TOL.f32_forward)
    assert float(weight) == real.sum() and wanted > 0
    assert_close(list(metrics.values())[0], wanted, TOL.f32_forward)
    for path, leaf in jax.tree.leaves_with_path(grads):
        assert np.isfinite(np.asarray(leaf)).all()
        if names(path) & {"q", "k", "phi_q", "phi_k"}:  # layer 1 of the hybrid stands alone
            moved = (np.asarray(leaf) != 0).any()
            assert moved == (not kept or "['prefix'][1]" not in jax.tree_util.keystr(path)), path
        if names(path) & {"v", "o", "channel", "embedding"}:
            assert (np.asarray(leaf) == 0).all(), jax.tree_util.keystr(path)


@pytest.mark.slow
def test_blocks_against_blocks():
    data = batch()
    (total, _), grads = compiled("hybrid", "block_out")(data)
    real = np.asarray(data["segment_ids"]) > 0
    found = [[np.asarray(y, np.float64) for y, _ in pair] for pair in pairs("hybrid", data)]
    wanted = np.mean([((x - y) ** 2).mean(-1)[real].sum() for x, y in found])
    assert_close(total, wanted, TOL.f32_forward)
    moved = [names(path) for path, x in jax.tree.leaves_with_path(grads) if (np.asarray(x) != 0).any()]
    assert any("channel" in path for path in moved) and not any("embedding" in path for path in moved)


@lru_cache
def swapping(order: str):
    teacher, student = models("hybrid")
    teacher_graph, frozen = nnx.split(teacher)
    graph, params, rest = nnx.split(student, nnx.Param, ...)
    loss = layerwise.swap(teacher_graph, graph, LogitLoss(), STEPS, order, chunk=16).loss_fn

    def total(params, batch, update):
        return loss(params, rest, batch, jax.random.key(0), frozen, update=update)[0]

    run = jax.jit(jax.value_and_grad(total), compiler_options=tiny.FAST)
    return lambda batch, update: run(params, batch, np.int32(update))


def mixed_kl(passed: tuple[int, ...], data: dict):
    """The divergence of a model some of whose layers are the student's, its layers called one by one."""
    (teacher, student), (inputs, _, mask) = models("hybrid"), shift(data)
    logs = []
    for chosen in ((), passed):
        x = student.embed(inputs)
        for i, blocks in enumerate(zip(teacher.stack.layers(), student.stack.layers(), strict=True)):
            x, _ = layer(*nnx.split(blocks[i in chosen]), x, data["segment_ids"])
        logs.append(np.asarray(jax.nn.log_softmax(student.head(student.norm(x)), axis=-1), np.float64))
    return (np.exp(logs[0]) * (logs[0] - logs[1])).sum(axis=-1)[np.asarray(mask) > 0].sum()


@pytest.mark.parametrize("order", ["up", pytest.param("down", marks=pytest.mark.slow)])
def test_layers_pass_one_by_one(order):
    """Three of four are replaced, in eight updates: at 0, 3 and 6; none that has not passed has a gradient."""
    data = batch()
    turns = {"up": [(0,), (0, 2), (0, 2, 3)], "down": [(3,), (2, 3), (0, 2, 3)]}[order]
    for update, passed in [(0, turns[0]), (2, turns[0]), (3, turns[1]), (5, turns[1]), (6, turns[2]), (7, turns[2])]:
        total, grads = swapping(order)(data, update)
        if update in (0, 3, 7):
            assert_close(total, mixed_kl(passed, data), TOL.f32_forward, f"update {update}")
        moved = 0
        for path, leaf in jax.tree.leaves_with_path(grads):
            if {"mixer", "gate"} <= names(path):  # of a layer, or of several stacked
                layers = np.asarray(leaf) if "period" in names(path) else np.asarray(leaf)[None]
                moved += sum(int((layer != 0).any()) for layer in layers)
        assert moved == len(passed), update


@pytest.mark.slow
def test_attention_maps_learn_and_move_feature_maps_alone():
    teacher, student = models("hedgehog")
    teacher_graph, frozen = nnx.split(teacher)
    stage = AttentionMaps(steps=10, optimizer=OptimizerConfig(learning_rate=3e-2, weight_decay=0.3))
    graph, params, rest = stage.trains.split(student)
    assert {name for path in nnx.to_flat_state(params) for name in path[0] if str(name).startswith("phi")} == MAPS
    assert all(MAPS & set(path) for path, _ in nnx.to_flat_state(params))
    tx, _ = stage.transformation()
    loss = stage.trains.loss(stage.objective(teacher_graph, graph))
    step = jax.jit(make_step(loss, tx), compiler_options=tiny.FAST)
    state, losses = make_state(params, rest, tx, 0), []
    for _ in range(10):
        state, metrics = step(state, batch(), frozen)
        losses.append(float(metrics["loss"]))
    assert losses[-1] < 0.9 * losses[0]


def test_matrix_losses_are_finite():
    """For any input, masked rows counting nothing, gradients included; 0 where they agree."""
    rng = np.random.default_rng(0)
    theirs = rng.random((2, 3, 4, 4)).astype(np.float32)
    theirs /= theirs.sum(-1, keepdims=True)
    mask = np.asarray([[1, 1, 0, 1], [0, 0, 0, 0]], np.float32)
    wild = theirs.copy()
    wild[0, :, 2], wild[1], wild[0, 0, 0], wild[0, 1, 1] = np.nan, np.inf, 0.0, 1e30

    @partial(jax.jit, static_argnums=2)
    def both(mine, theirs, kind):
        loss = partial(matrix_loss, teacher=theirs, mask=jnp.asarray(mask), loss=MatrixLoss(kind=kind))
        return jax.value_and_grad(lambda mine: loss(mine).total)(mine)

    for kind in ("frobenius", "cross_entropy"):
        total, grad = both(theirs, theirs, kind)
        assert abs(float(total)) < 1e-6
        total, grad = both(wild, theirs, kind)
        assert np.isfinite(total) and total > 0 and np.isfinite(grad).all()
        assert (np.asarray(grad)[1] == 0).all() and (np.asarray(grad)[0, :, 2] == 0).all()


def check(stage, student: str):
    teacher, made = models(student)
    return jax.eval_shape(lambda pair: stage.check(*pair), (teacher, made))


def test_refusals_before_anything_is_trained():
    check(Orient(), "hybrid")
    check(AttentionMaps(), "hedgehog")
    with pytest.raises(ValueError, match="mixer: expected one with attention weights .*, got RetNetMixer"):
        check(AttentionMaps(), "hybrid")
    with pytest.raises(ValueError, match="expected what orient reaches, .*, got all"):
        Orient(trains=All())


class Holder(Config):
    stages: tuple[StageChoice, ...]


def test_stages_are_data():
    text = (
        "stages=[{type: orient}, {type: align, target: block_out}, {type: attention_maps}, {type: swap, order: down}]"
    )
    held = load(Holder, None, [text]).stages
    assert [stage.type_name for stage in held] == ["orient", "align", "attention_maps", "swap"]
    assert held[2].loss.kind == "cross_entropy" and set(held[2].trains.names) == MAPS
    with pytest.raises(UserError, match="target"):
        load(Holder, None, ["stages=[{type: align, target: out}]"])
