"""What is minimised layer by layer: hidden alignment, mixing matrices, and the stack in which layers change hands.

Makers as in ``objectives``. Teacher and student stacks are scanned together: one pass over all layers, none of whose
hidden states are kept for later.
"""

import dataclasses
from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from effarch.data.targets import shift
from effarch.distill.chunked import chunked_logit_loss
from effarch.distill.hidden import HiddenLoss, hidden_loss
from effarch.distill.losses import LogitLoss
from effarch.distill.matrices import MatrixLoss, matrix_loss
from effarch.mixers.base import Context
from effarch.models.block import Block
from effarch.models.encoder import Encoder
from effarch.models.lm import LM
from effarch.models.stack import scan_layers
from effarch.ops.precision import accumulator
from effarch.training.step import LossFn, Scheduled
from effarch.typing import Array, PyTree

CHUNK = 256  # positions whose logits exist at a time
Target = Literal["mixer_out", "block_out"]
#: What has ``enter(batch) -> (stream, context, mask)`` and a stack.
Layered = LM | Encoder


def _replaced(layers: tuple[Block, ...]) -> bool:
    """Whether the student's layer has another mixer than the teacher's."""
    return type(layers[0].mixer) is not type(layers[1].mixer)


def align(teacher_graph: nnx.GraphDef, graph: nnx.GraphDef, config: HiddenLoss, target: Target = "mixer_out") -> LossFn:
    """Every layer of the student on the *teacher's* input of it, against the teacher's output.

    The loss is averaged over layers; positions of real tokens count. Of language models and of encoders.

    Args:
      target: the output of the mixer, or that of the whole block, residual stream included (MOHAWK, 2408.10189).
    """

    def loss(params: PyTree, rest: PyTree, batch: dict[str, Array], rng: Array, frozen: PyTree) -> tuple:
        teacher: Layered = nnx.merge(teacher_graph, frozen)
        student: Layered = nnx.merge(graph, params, rest)
        x, ctx, mask = teacher.enter(batch)

        def body(carry: tuple, layers: tuple[Block, ...]) -> tuple[tuple, tuple]:
            x, teacher_shared, student_shared = carry
            theirs = dataclasses.replace(ctx, shared=teacher_shared)
            after, _, theirs, shown = layers[0](x, None, theirs, (target,))
            mine = dataclasses.replace(ctx, shared=student_shared)
            _, _, mine, own = layers[1](x, None, mine, (target,))  # what is not asked for is not computed
            layer = hidden_loss(own[target], shown[target], mask, config)
            return (after, dict(theirs.shared), dict(mine.shared)), (layer.total, layer.weight, layer.metrics)

        x = jax.lax.stop_gradient(x)
        stacks = [teacher.stack, student.stack]
        _, (totals, weights, metrics) = scan_layers(body, (x, {}, {}), stacks, remat=student.config.remat)
        count = totals.shape[0]
        return totals.sum() / count, weights[0], {name: x.sum() / count for name, x in metrics.items()}

    return loss


def matrices(teacher_graph: nnx.GraphDef, graph: nnx.GraphDef, config: MatrixLoss) -> LossFn:
    """Mixing matrices of the student, every mixer on the *teacher's* input of its layer, against the teacher's.

    For the teacher's attention weights per head; layers that are kept do not count. The loss is averaged over the
    others; rows of real tokens count. O(T^2) memory per layer.
    """
    weights = config.kind == "cross_entropy"

    def loss(params: PyTree, rest: PyTree, batch: dict[str, Array], rng: Array, frozen: PyTree) -> tuple:
        teacher: Layered = nnx.merge(teacher_graph, frozen)
        student: Layered = nnx.merge(graph, params, rest)
        x, ctx, mask = teacher.enter(batch)

        def body(carry: tuple, layers: tuple[Block, ...]) -> tuple[tuple, tuple]:
            x, teacher_shared, student_shared = carry
            theirs = dataclasses.replace(ctx, shared=teacher_shared)
            mine = dataclasses.replace(ctx, shared=student_shared)
            heads = []
            if _replaced(layers):
                for layer, context in zip(layers, (theirs, mine), strict=True):
                    heads.append(layer.mixer.mixing_matrix(layer.mixer_norm(x), context, weights=weights))
            after, _, theirs, _ = layers[0](x, None, theirs)
            _, _, mine = layers[1].mixer(layers[1].mixer_norm(x), None, mine)  # for the values that cross layers
            shared = (dict(theirs.shared), dict(mine.shared))
            nothing = jnp.zeros((), accumulator(x))
            total = matrix_loss(heads[1], heads[0], mask, config).total if heads else nothing
            return (after, *shared), (total, nothing + float(bool(heads)))

        x = jax.lax.stop_gradient(x)
        stacks = [teacher.stack, student.stack]
        _, (totals, counted) = scan_layers(body, (x, {}, {}), stacks, remat=student.config.remat)
        total = totals.sum() / jnp.maximum(counted.sum(), 1)
        return total, mask.sum().astype(total.dtype), {config.kind: jax.lax.stop_gradient(total) / config.weight}

    return loss


def check_matrices(teacher: LM, student: LM, config: MatrixLoss) -> None:
    """Raises ``ValueError`` where :func:`matrices` cannot compare a layer of theirs; abstract models will do."""
    for i, layers in enumerate(zip(teacher.stack.layers(), student.stack.layers(), strict=True)):
        if not _replaced(layers):
            continue
        x = jnp.zeros((1, 2, student.config.dim), jnp.dtype(student.config.dtype))
        ctx = dataclasses.replace(Context.of(1, 2)[0], shared=_shared(student, i, x))
        weights = config.kind == "cross_entropy"
        theirs, mine = (layer.mixer.mixing_matrix(x, ctx, weights=weights).shape[1] for layer in layers)
        if theirs != mine:
            raise ValueError(
                f"num_heads: expected the teacher's {theirs}, to compare matrices head by head, got {mine}"
            )


def _shared(lm: LM, index: int, x: Array) -> dict[str, Array]:
    """The values that cross layers as layer ``index`` finds them."""
    ctx = Context.of(*x.shape[:2])[0]
    for layer in lm.stack.layers()[:index]:
        ctx = layer.mixer(x, None, ctx)[2]
    return dict(ctx.shared)


def swap(
    teacher_graph: nnx.GraphDef,
    graph: nnx.GraphDef,
    config: LogitLoss,
    steps: int,
    order: Literal["up", "down"] = "up",
    chunk: int = CHUNK,
) -> Scheduled:
    """Logits of a stack in which layers pass from teacher to student, one after the other at equal intervals.

    With n layers to replace, update u of ``steps`` runs the student's first ``1 + n u // steps`` of them (from the
    bottom, or from the top) and the teacher's others; the last n-th of the updates runs the student whole. A layer is
    its whole block. Which layers have passed is data: nothing is compiled anew.
    """

    def loss(params: PyTree, rest: PyTree, batch: dict[str, Array], rng: Array, frozen: PyTree, *, update: Array):
        teacher: LM = nnx.merge(teacher_graph, frozen)
        student: LM = nnx.merge(graph, params, rest)
        rank = jnp.asarray(ranks(teacher, student, order))
        passed = rank <= (rank.max() + 1) * update // steps
        inputs, targets, mask = shift(batch)
        segment_ids = batch["segment_ids"]
        ctx, _ = Context.of(*inputs.shape, segment_ids=segment_ids)

        def body(carry: tuple, layers: tuple[Block, ...]) -> tuple[tuple, tuple]:
            x, index, teacher_shared, student_shared = carry
            # Both run, also on what the other made: values that cross layers are there when a layer passes.
            theirs, _, teacher_ctx, _ = layers[0](x, None, dataclasses.replace(ctx, shared=teacher_shared))
            mine, _, student_ctx, _ = layers[1](x, None, dataclasses.replace(ctx, shared=student_shared))
            x = jnp.where(passed[index], mine, theirs)
            return (x, index + 1, dict(teacher_ctx.shared), dict(student_ctx.shared)), ()

        start = (student.embed(inputs, ctx.positions), jnp.zeros((), jnp.int32), {}, {})
        (x, *_), _ = teacher.scan_layers(body, start, student, remat=student.config.remat)
        theirs = jax.lax.stop_gradient(teacher.hidden(inputs, segment_ids=segment_ids).hidden)
        mine = student.normed(x)
        return tuple(chunked_logit_loss(mine, theirs, student.head, teacher.head, targets, mask, config, chunk))

    return Scheduled(loss)


def ranks(teacher: LM, student: LM, order: Literal["up", "down"] = "up") -> np.ndarray:
    """When each layer passes to the student, ``[L]``: 0, 1, ... of those replaced; kept ones with a neighbour."""
    blocks = [lm.config.block for lm in (teacher, student)]
    replaced = [blocks[0](i).mixer != blocks[1](i).mixer for i in range(teacher.config.num_layers)]
    if order == "down":
        replaced.reverse()
    rank = np.maximum(np.cumsum(replaced, dtype=np.int32) - 1, 0).astype(np.int32)
    return rank[::-1].copy() if order == "down" else rank
