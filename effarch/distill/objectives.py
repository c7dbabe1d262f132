"""What is minimised, as functions for the training step: next tokens, classes, hidden alignment, logits.

Each maker takes the static graphs of its models and returns
``loss(params, rest, batch, rng, *frozen) -> (sum, weight, metrics)``; a teacher's parameters come in as ``frozen``.
"""

import dataclasses

import jax
import jax.numpy as jnp
from flax import nnx

from effarch.data.targets import shift
from effarch.distill.chunked import chunked_cross_entropy, chunked_logit_loss
from effarch.distill.hidden import HiddenLoss, hidden_loss
from effarch.distill.losses import LogitLoss, summed, token_nll
from effarch.mixers.base import Context
from effarch.models.block import Block
from effarch.models.classifier import Classifier
from effarch.models.lm import LM
from effarch.training.step import LossFn
from effarch.typing import Array, PyTree

CHUNK = 256  # positions whose logits exist at a time


def next_token(graph: nnx.GraphDef, chunk: int = CHUNK) -> LossFn:
    """Cross-entropy of the next token, nats; a teacher that is handed over is not asked."""

    def loss(params: PyTree, rest: PyTree, batch: dict[str, Array], rng: Array, *frozen: PyTree) -> tuple:
        lm: LM = nnx.merge(graph, params, rest)
        inputs, targets, mask = shift(batch)
        hidden = lm.hidden(inputs, segment_ids=batch["segment_ids"]).hidden
        return tuple(chunked_cross_entropy(hidden, lm.head, targets, mask, chunk))

    return loss


def answers(graph: nnx.GraphDef, chunk: int = CHUNK) -> LossFn:
    """Cross-entropy of the answers of a synthetic task, nats: of ``targets`` at the same place, where ``mask`` is 1."""

    def loss(params: PyTree, rest: PyTree, batch: dict[str, Array], rng: Array) -> tuple:
        lm: LM = nnx.merge(graph, params, rest)
        hidden = lm.hidden(batch["tokens"]).hidden
        return tuple(chunked_cross_entropy(hidden, lm.head, batch["targets"], batch["mask"], chunk))

    return loss


def classification(graph: nnx.GraphDef) -> LossFn:
    """Cross-entropy of a row's class, nats; the metric ``correct`` is the share of rows whose largest logit is right.

    A batch has ``inputs``, ``labels [B]``, ``weights [B]`` and, where rows are padded, ``mask [B, T]``.
    """

    def loss(params: PyTree, rest: PyTree, batch: dict[str, Array], rng: Array) -> tuple:
        model: Classifier = nnx.merge(graph, params, rest)
        logits, labels = model(batch["inputs"], mask=batch.get("mask")), batch["labels"]
        nll = token_nll(logits, labels)
        found = summed("cross_entropy", nll, batch["weights"])
        right = summed("correct", (jnp.argmax(logits, axis=-1) == labels).astype(nll.dtype), batch["weights"])
        return found.total, found.weight, found.metrics | right.metrics

    return loss


def align(teacher_graph: nnx.GraphDef, graph: nnx.GraphDef, config: HiddenLoss) -> LossFn:
    """Every mixer of the student on the *teacher's* input of its layer, against the teacher's mixer output.

    One pass over all layers: teacher and student stacks are scanned together, so that no layer's hidden states are
    kept for later. The loss is averaged over layers; positions of real tokens count.
    """

    def loss(params: PyTree, rest: PyTree, batch: dict[str, Array], rng: Array, frozen: PyTree) -> tuple:
        teacher: LM = nnx.merge(teacher_graph, frozen)
        student: LM = nnx.merge(graph, params, rest)
        tokens, segment_ids = batch["tokens"], batch["segment_ids"]
        ctx, _ = Context.of(*tokens.shape, segment_ids=segment_ids)
        mask = segment_ids > 0

        def body(carry: tuple, layers: tuple[Block, ...]) -> tuple[tuple, tuple]:
            x, teacher_shared, student_shared = carry
            theirs = dataclasses.replace(ctx, shared=teacher_shared)
            after, _, theirs, shown = layers[0](x, None, theirs, ("mixer_out",))
            mine = dataclasses.replace(ctx, shared=student_shared)
            out, _, mine = layers[1].mixer(layers[1].mixer_norm(x), None, mine)
            layer = hidden_loss(out, shown["mixer_out"], mask, config)
            return (after, dict(theirs.shared), dict(mine.shared)), (layer.total, layer.weight, layer.metrics)

        x = jax.lax.stop_gradient(teacher.embed(tokens))
        _, (totals, weights, metrics) = teacher.scan_layers(body, (x, {}, {}), student, remat=student.config.remat)
        count = totals.shape[0]
        return totals.sum() / count, weights[0], {name: x.sum() / count for name, x in metrics.items()}

    return loss


def logits(teacher_graph: nnx.GraphDef, graph: nnx.GraphDef, config: LogitLoss, chunk: int = CHUNK) -> LossFn:
    """A divergence between the next-token distributions of teacher and student, where the text supervises."""

    def loss(params: PyTree, rest: PyTree, batch: dict[str, Array], rng: Array, frozen: PyTree) -> tuple:
        teacher: LM = nnx.merge(teacher_graph, frozen)
        student: LM = nnx.merge(graph, params, rest)
        inputs, targets, mask = shift(batch)
        segment_ids = batch["segment_ids"]
        theirs = jax.lax.stop_gradient(teacher.hidden(inputs, segment_ids=segment_ids).hidden)
        mine = student.hidden(inputs, segment_ids=segment_ids).hidden
        return tuple(chunked_logit_loss(mine, theirs, student.head, teacher.head, targets, mask, config, chunk))

    return loss
