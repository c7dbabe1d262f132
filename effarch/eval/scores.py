"""How good a model is: bits per byte, distance from its teacher, answers, classes found."""

import dataclasses
from collections.abc import Iterable, Mapping
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from effarch.data.bytes import ByteTokenizer
from effarch.data.rows import FIELDS
from effarch.data.targets import shift
from effarch.data.tokenizer import Tokenizer
from effarch.distill.chunked import token_kl, token_scores
from effarch.distill.losses import LogitLoss, bits, masked_sum, token_divergence
from effarch.distill.objectives import classification
from effarch.models.classifier import Classifier
from effarch.models.lm import LM
from effarch.parallel.processes import on_host
from effarch.typing import Array, PyTree

BYTES = ByteTokenizer()
Batch = Mapping[str, Array | np.ndarray]


@dataclasses.dataclass(frozen=True)
class TextScores:
    """On validation text.

    Attributes:
      bits_per_byte: cross-entropy of the text, special tokens included, per byte of it.
      kl_bits: KL(teacher || model) in bits per token; None without a teacher.
      agreement: share of the tokens, 0 to 1, whose likeliest one is the teacher's too; None without a teacher.
    """

    bits_per_byte: float
    kl_bits: float | None
    agreement: float | None


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
        best = token_scores(theirs, teacher.head, targets, mask)["best"]
        scores["kl"] = token_kl(hidden, theirs, lm.head, teacher.head, mask)
        scores["agree"] = (scores["best"] == best).astype(mask.dtype) * mask
    return scores


def score_tokens(lm: LM, batch: Batch, teacher: LM | None = None) -> dict[str, np.ndarray]:
    """``[B, T]`` of every position's next token: ``nll`` (nats), ``correct``, ``best`` (the likeliest), ``mask``.

    With a teacher also ``kl`` (nats) and ``agree``. One program per model, shape of rows, and with or without a
    teacher.

    Args:
      lm: the model. batch: ``tokens``, ``segment_ids``, ``loss_mask``; others are ignored. teacher: of the model.
    """
    graph, params = nnx.split(lm)
    teacher_graph, teacher_params = (None, None) if teacher is None else nnx.split(teacher)
    rows = {name: batch[name] for name in FIELDS}
    return on_host(_token_scores(graph, params, teacher_graph, teacher_params, rows))


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
    nats = kl = agree = 0.0
    tokens = text = 0
    for batch in batches:
        scores = score_tokens(lm, batch, teacher)
        counted = scores["mask"] > 0
        sizes = tokenizer.byte_counts(np.asarray(batch["tokens"]))[:, 1:]  # of what is predicted
        nats += float(scores["nll"].sum(dtype=np.float64))
        if teacher is not None:
            kl += float(scores["kl"].sum(dtype=np.float64))
            agree += float(scores["agree"].sum(dtype=np.float64))
        tokens += int(counted.sum())
        text += int(sizes[counted[:, :-1]].sum())
    if text == 0:
        raise ValueError("batches: expected text to predict, got none")
    if teacher is None:
        return TextScores(bits(nats / text), None, None)
    return TextScores(bits(nats / text), bits(kl / tokens), agree / tokens)


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


@partial(jax.jit, static_argnums=(0, 1))
def _distance_sums(
    graph: nnx.GraphDef, teacher_graph: nnx.GraphDef, state: PyTree, teacher_state: PyTree, batch: Batch
) -> tuple[Array, Array, Array]:
    model, teacher = nnx.merge(graph, state), nnx.merge(teacher_graph, teacher_state)
    asked = batch["inputs"], batch.get("mask"), batch.get("token_types")
    mine, theirs = (classifier(asked[0], mask=asked[1], token_types=asked[2]) for classifier in (model, teacher))
    kl = token_divergence(mine, theirs, LogitLoss())
    same = (mine.argmax(axis=-1) == theirs.argmax(axis=-1)).astype(kl.dtype)
    weights = jnp.asarray(batch["weights"])
    return masked_sum(kl, weights), masked_sum(same, weights), weights.sum()


def class_distance(model: Classifier, teacher: Classifier, batches: Iterable[Batch]) -> tuple[float, float]:
    """KL(teacher || model) of the classes in bits per row, and the share of rows with the same likeliest class.

    Args:
      model, teacher: classifiers of the same classes. batches: as for :func:`accuracy`.

    Raises:
      ValueError: no rows.
    """
    graphs, states = zip(*(nnx.split(x) for x in (model, teacher)), strict=True)
    kl = same = rows = 0.0
    for batch in batches:
        sums = _distance_sums(*graphs, *states, dict(batch))
        kl, same, rows = (total + float(x) for total, x in zip((kl, same, rows), sums, strict=True))
    if rows == 0:
        raise ValueError("batches: expected rows to classify, got none")
    return bits(kl / rows), same / rows
