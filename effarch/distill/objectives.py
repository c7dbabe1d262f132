"""What is minimised, as functions for the training step: next tokens, classes, logits; ``layerwise`` has the rest.

Each maker takes the static graphs of its models and returns
``loss(params, rest, batch, rng, *frozen) -> (sum, weight, metrics)``; a teacher's parameters come in as ``frozen``.
"""

from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from effarch.data.targets import shift
from effarch.distill.chunked import chunked_cross_entropy, chunked_logit_loss, chunked_top_k_loss
from effarch.distill.losses import LogitLoss, logit_loss, summed, token_nll
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


def class_logits(teacher_graph: nnx.GraphDef, graph: nnx.GraphDef, config: LogitLoss) -> LossFn:
    """A divergence between the class distributions of teacher and student (1503.02531); batches as above."""

    def loss(params: PyTree, rest: PyTree, batch: dict[str, Array], rng: Array, frozen: PyTree) -> tuple:
        teacher: Classifier = nnx.merge(teacher_graph, frozen)
        student: Classifier = nnx.merge(graph, params, rest)
        inputs, mask, kinds = batch["inputs"], batch.get("mask"), batch.get("token_types")
        theirs = jax.lax.stop_gradient(teacher(inputs, mask=mask, token_types=kinds))
        mine = student(inputs, mask=mask, token_types=kinds)
        return tuple(logit_loss(mine, theirs, batch["labels"], batch["weights"], config))

    return loss


def logits(
    teacher_graph: nnx.GraphDef,
    graph: nnx.GraphDef,
    config: LogitLoss,
    chunk: int = CHUNK,
    vocab_chunk: int | None = None,
) -> LossFn:
    """A divergence between the next-token distributions of teacher and student, where the text supervises."""

    def loss(params: PyTree, rest: PyTree, batch: dict[str, Array], rng: Array, frozen: PyTree) -> tuple:
        teacher: LM = nnx.merge(teacher_graph, frozen)
        student: LM = nnx.merge(graph, params, rest)
        inputs, targets, mask = shift(batch)
        segment_ids = batch["segment_ids"]
        theirs = jax.lax.stop_gradient(teacher.hidden(inputs, segment_ids=segment_ids).hidden)
        mine = student.hidden(inputs, segment_ids=segment_ids).hidden
        heads = student.head, teacher.head
        return tuple(chunked_logit_loss(mine, theirs, *heads, targets, mask, config, chunk, vocab_chunk=vocab_chunk))

    return loss


def cached_logits(graph: nnx.GraphDef, config: LogitLoss, chunk: int = CHUNK, vocab_chunk: int | None = None) -> LossFn:
    """:func:`logits` with the teacher's likeliest tokens in the batch, under "teacher", in place of the teacher."""

    def loss(params: PyTree, rest: PyTree, batch: dict[str, Any], rng: Array) -> tuple:
        student: LM = nnx.merge(graph, params, rest)
        inputs, targets, mask = shift(batch)
        mine = student.hidden(inputs, segment_ids=batch["segment_ids"]).hidden
        said = batch["teacher"], targets, mask
        return tuple(chunked_top_k_loss(mine, student.head, *said, config, chunk, vocab_chunk=vocab_chunk))

    return loss
