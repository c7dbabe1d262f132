"""How good a model is: bits per byte, divergence from its teacher, recall at a distance, classes found."""

import dataclasses
from collections.abc import Iterable, Mapping
from functools import partial

import jax
import numpy as np
from flax import nnx

from effarch.data.bytes import ByteTokenizer
from effarch.data.targets import shift
from effarch.data.tokenizer import Tokenizer
from effarch.distill.chunked import token_kl, token_scores
from effarch.distill.losses import bits
from effarch.distill.objectives import classification
from effarch.models.classifier import Classifier
from effarch.models.lm import LM
from effarch.typing import Array, PyTree

BYTES = ByteTokenizer()
Batch = Mapping[str, Array | np.ndarray]


@dataclasses.dataclass(frozen=True)
class TextScores:
    """On validation text.

    Attributes:
      bits_per_byte: cross-entropy of the text, special tokens included, per byte of it.
      kl_bits: KL(teacher || model) in bits per token; None without a teacher.
    """

    bits_per_byte: float
    kl_bits: float | None


@dataclasses.dataclass(frozen=True)
class RecallScores:
    """On synthetic recall rows: accuracy in 0 to 1, greedy, one answer token each.

    Attributes:
      within: answers whose fact lies at most ``window`` tokens back. beyond: the others.
      by_distance: {largest distance of a bucket (a power of two): accuracy}.
    """

    within: float
    beyond: float
    by_distance: dict[int, float]


@dataclasses.dataclass(frozen=True)
class AnswerScores:
    """On rows of a synthetic task.

    Attributes:
      accuracy: share of the answers that are the most likely token, 0 to 1.
      nats: mean negative log-likelihood of an answer.
    """

    accuracy: float
    nats: float


@partial(jax.jit, static_argnums=0)
def _answer_scores(graph: nnx.GraphDef, params: PyTree, batch: dict[str, Array]) -> dict[str, Array]:
    lm: LM = nnx.merge(graph, params)
    return token_scores(lm.hidden(batch["tokens"]).hidden, lm.head, batch["targets"], batch["mask"])


def answer_scores(lm: LM, batch: Batch) -> AnswerScores:
    """:class:`AnswerScores` on rows with ``targets`` where ``mask`` is 1.

    Raises:
      ValueError: an answer whose likelihood is not finite.
    """
    graph, params = nnx.split(lm)
    scores = jax.tree.map(np.asarray, _answer_scores(graph, params, dict(batch)))
    counted = np.asarray(batch["mask"]) > 0
    nats = float(scores["nll"][counted].mean(dtype=np.float64))
    if not np.isfinite(nats):
        raise ValueError("not finite")
    return AnswerScores(float(scores["correct"][counted].mean(dtype=np.float64)), nats)


@partial(jax.jit, static_argnums=(0, 2))
def _token_scores(graph: nnx.GraphDef, params: PyTree, teacher_graph, teacher_params, batch) -> dict[str, Array]:
    lm: LM = nnx.merge(graph, params)
    inputs, targets, mask = shift(batch)
    hidden = lm.hidden(inputs, segment_ids=batch["segment_ids"]).hidden
    scores = token_scores(hidden, lm.head, targets, mask) | {"mask": mask}
    if teacher_graph is not None:
        teacher: LM = nnx.merge(teacher_graph, teacher_params)
        theirs = teacher.hidden(inputs, segment_ids=batch["segment_ids"]).hidden
        scores["kl"] = token_kl(hidden, theirs, lm.head, teacher.head, mask)
    return scores


def score_tokens(lm: LM, batch: Batch, teacher: LM | None = None) -> dict[str, np.ndarray]:
    """``[B, T]`` of every position's next token: ``nll`` (nats), ``correct``, ``mask``; with a teacher ``kl``, nats."""
    graph, params = nnx.split(lm)
    teacher_graph, teacher_params = (None, None) if teacher is None else nnx.split(teacher)
    return jax.tree.map(np.asarray, _token_scores(graph, params, teacher_graph, teacher_params, dict(batch)))


def text_scores(
    lm: LM, batches: Iterable[Batch], *, tokenizer: Tokenizer = BYTES, teacher: LM | None = None
) -> TextScores:
    """:class:`TextScores` over batches of text rows.

    Args:
      lm: the model. batches: of rows. tokenizer: what made them; it knows the bytes of every token. teacher: what
        divergence is measured from.

    Raises:
      ValueError: no token to predict.
    """
    nats = kl = 0.0
    tokens = text = 0
    for batch in batches:
        scores = score_tokens(lm, batch, teacher)
        counted = scores["mask"] > 0
        sizes = tokenizer.byte_counts(np.asarray(batch["tokens"]))[:, 1:]  # of what is predicted
        nats += float(scores["nll"].sum(dtype=np.float64))
        kl += float(scores["kl"].sum(dtype=np.float64)) if teacher is not None else 0.0
        tokens += int(counted.sum())
        text += int(sizes[counted[:, :-1]].sum())
    if text == 0:
        raise ValueError("batches: expected text to predict, got none")
    return TextScores(bits(nats / text), bits(kl / tokens) if teacher is not None else None)


def recall_scores(lm: LM, batches: Iterable[Batch], window: int) -> RecallScores:
    """:class:`RecallScores` over batches of recall rows, which carry the ``distance`` of each answer token.

    Args:
      lm: the model. batches: with ``distance [B, T]``, 0 where there is no answer. window: tokens.

    Raises:
      ValueError: no answers.
    """
    distances, rights = [], []
    for batch in batches:
        rows = {name: x for name, x in batch.items() if name != "distance"}
        scores = score_tokens(lm, rows)
        distance = np.pad(np.asarray(batch["distance"])[:, 1:], ((0, 0), (0, 1)))  # of the token that is predicted
        counted = (scores["mask"] > 0) & (distance > 0)
        distances.append(distance[counted])
        rights.append(scores["correct"][counted])
    distance, right = np.concatenate(distances), np.concatenate(rights)
    if not len(right):
        raise ValueError("batches: expected recall rows with answers, got none")

    def accuracy(chosen: np.ndarray) -> float:
        return float(right[chosen].mean()) if chosen.any() else float("nan")

    buckets = 2 ** np.ceil(np.log2(np.maximum(distance, 1))).astype(int)
    by_distance = {int(b): accuracy(buckets == b) for b in np.unique(buckets)}
    return RecallScores(accuracy(distance <= window), accuracy(distance > window), by_distance)


@partial(jax.jit, static_argnums=0)
def _class_sums(
    graph: nnx.GraphDef, params: PyTree, rest: PyTree, batch: Batch
) -> tuple[Array, Array, dict[str, Array]]:
    return classification(graph)(params, rest, batch, None)


def accuracy(model: Classifier, batches: Iterable[Batch]) -> float:
    """Share of rows, in 0 to 1, that a classifier finds the class of; rows of weight 0 do not count.

    Args:
      model: the classifier. batches: ``inputs``, ``labels [B]``, ``weights [B]``, and ``mask [B, T]`` where rows are
        padded.

    Raises:
      ValueError: no rows.
    """
    graph, params, rest = nnx.split(model, nnx.Param, ...)
    right = rows = 0.0
    for batch in batches:
        _, weight, metrics = _class_sums(graph, params, rest, dict(batch))
        right, rows = right + float(metrics["correct"]), rows + float(weight)
    if rows == 0:
        raise ValueError("batches: expected rows to classify, got none")
    return right / rows
