"""Losses of logits: pure functions ``(student, teacher, mask) -> Loss``.

Every loss is a masked *sum* over positions beside the sum of the mask, so that micro-batches and devices add up to the
batch exactly: add the totals, add the weights, divide once. Everything is computed in float32 (float64 stays float64)
and in nats per token; :func:`bits` converts. The teacher is a constant: no gradient flows into it.

Finite for any logits: a logit more than ``RANGE`` (1e6) temperature-scaled nats below its row's largest (a masked
vocabulary entry is ``-inf``) counts as ``RANGE`` below and receives no gradient. So an entry masked in both models
costs nothing, and one that the student cannot emit but the teacher would costs ``p * RANGE`` instead of infinity.
Positions with mask 0 are replaced before anything is computed from them, so NaN in padding reaches neither the value
nor a gradient.
"""

import math
from collections.abc import Mapping
from typing import NamedTuple, TypeVar

import jax
import jax.numpy as jnp

from effarch.distill.divergences import LogitLoss, divergence, log_probabilities
from effarch.ops.precision import accumulator
from effarch.typing import Array, Float, Int

Number = TypeVar("Number", Array, float)


class Loss(NamedTuple):
    """Masked sums: ``(total, weight, metrics)``, the triple that the training step adds over micro-batches.

    Args:
        total: the loss summed over positions, each times its mask; nats for logit losses. Shape [].
        weight: the sum of the mask. Shape [].
        metrics: further sums by name, to be divided by ``weight``; not differentiated.
    """

    total: Float[Array, ""]
    weight: Float[Array, ""]
    metrics: dict[str, Float[Array, ""]]

    def mean(self) -> Float[Array, ""]:
        """``total / weight``; 0, with zero gradients, where every position is masked."""
        return self.total / jnp.where(self.weight > 0, self.weight, jnp.ones_like(self.weight))


def bits(nats: Number) -> Number:
    """Nats to bits."""
    return nats / math.log(2)


def masked_sum(values: Float[Array, "*b"], mask: Array) -> Float[Array, ""]:
    """Sum of ``values * mask``; a position with mask 0 counts 0 whatever its value."""
    values = jnp.where(mask.astype(bool), values, jnp.zeros_like(values))
    return jnp.sum(values * mask.astype(values.dtype))


def clear_masked(x: Array, mask: Array) -> Array:
    """``x`` [..., X] with zeros where ``mask`` [...] is 0, so that what padding holds enters no product."""
    return jnp.where(mask[..., None].astype(bool), x, jnp.zeros_like(x))


def token_divergence(
    student: Float[Array, "*b V"], teacher: Float[Array, "*b W"], loss: LogitLoss, vocab_size: int | None = None
) -> Float[Array, "*b"]:
    """The divergence named by ``loss.kind`` at every position, in nats, times ``loss.scale``."""
    student, teacher = crop_vocabulary(student, teacher, vocab_size)
    dtype = accumulator(student, teacher)
    log_q = log_probabilities(student.astype(dtype), loss.temperature)
    log_p = log_probabilities(jax.lax.stop_gradient(teacher).astype(dtype), loss.temperature)
    return divergence(log_q, log_p, loss)


def token_nll(logits: Float[Array, "*b V"], targets: Int[Array, "*b"]) -> Float[Array, "*b"]:
    """Negative log-likelihood of ``targets`` in nats; NaN where a target lies outside the vocabulary."""
    log_q = log_probabilities(logits)
    targets = jnp.where(targets < 0, log_q.shape[-1], targets)  # JAX would count a negative index from the end
    return -jnp.take_along_axis(log_q, targets[..., None], axis=-1, mode="fill")[..., 0]


def crop_vocabulary(student: Array, teacher: Array, vocab_size: int | None) -> tuple[Array, Array]:
    """Both logits cut to their :func:`common_vocabulary`."""
    size = common_vocabulary(student.shape[-1], teacher.shape[-1], vocab_size)
    return student[..., :size], teacher[..., :size]


def common_vocabulary(student: int, teacher: int, vocab_size: int | None) -> int:
    """``vocab_size``, how many leading entries two vocabularies share; None asks for equal sizes.

    Raises:
        ValueError: sizes that differ without a ``vocab_size``, or a ``vocab_size`` above either.
    """
    if vocab_size is None and student != teacher:
        raise ValueError(
            f"vocabulary: expected equal sizes, got {student} (student) and {teacher} (teacher); where they differ "
            "only by padding rows, pass vocab_size"
        )
    if vocab_size is not None and not 0 < vocab_size <= min(student, teacher):
        raise ValueError(
            f"vocab_size: expected 1 to {min(student, teacher)} (student {student}, teacher {teacher}), "
            f"got {vocab_size}"
        )
    return student if vocab_size is None else vocab_size


def forward_kl(student, teacher, mask, *, temperature: float = 1.0, vocab_size: int | None = None) -> Loss:
    """KL(teacher || student) of logits [B,T,V]: covers all that the teacher does. Args as :func:`logit_loss`."""
    return divergence_loss(student, teacher, mask, LogitLoss(kind="forward_kl", temperature=temperature), vocab_size)


def reverse_kl(student, teacher, mask, *, temperature: float = 1.0, vocab_size: int | None = None) -> Loss:
    """KL(student || teacher) of logits [B,T,V]: stays within what the teacher does. Args as :func:`logit_loss`."""
    return divergence_loss(student, teacher, mask, LogitLoss(kind="reverse_kl", temperature=temperature), vocab_size)


def jensen_shannon(
    student, teacher, mask, *, beta: float = 0.5, temperature: float = 1.0, vocab_size: int | None = None
) -> Loss:
    """Generalised Jensen-Shannon divergence of logits [B,T,V] (GKD, 2306.13649, equation 1).

    ``beta KL(P || M) + (1 - beta) KL(Q || M)`` with ``M = beta P + (1 - beta) Q``, P the teacher and Q the student.
    """
    loss = LogitLoss(kind="jensen_shannon", beta=beta, temperature=temperature)
    return divergence_loss(student, teacher, mask, loss, vocab_size)


def divergence_loss(student, teacher, mask, loss: LogitLoss, vocab_size: int | None = None) -> Loss:
    """The divergence named by ``loss.kind`` alone, of logits [B,T,V]: without its weight, without cross-entropy."""
    check_shape("mask", mask, student.shape[:-1])
    check_shape("teacher", teacher, (*student.shape[:-1], teacher.shape[-1]))
    values = token_divergence(clear_masked(student, mask), clear_masked(teacher, mask), loss, vocab_size)
    return summed(loss.kind, values, mask)


def cross_entropy(logits: Float[Array, "B T V"], targets: Int[Array, "B T"], mask: Array) -> Loss:
    """Negative log-likelihood of ``targets``; a masked position may hold any id, another only one in the vocabulary."""
    check_shape("mask", mask, logits.shape[:-1])
    check_shape("targets", targets, logits.shape[:-1])
    return summed("cross_entropy", token_nll(clear_masked(logits, mask), targets), mask)


def summed(name: str, values: Float[Array, "*b"], mask: Array) -> Loss:
    """The :class:`Loss` of per-position ``values`` [B,T], with its own sum as the metric ``name``."""
    total = masked_sum(values, mask)
    return Loss(total, jnp.sum(mask.astype(total.dtype)), {name: jax.lax.stop_gradient(total)})


def mix(losses: Mapping[str, Loss], weights: Mapping[str, float]) -> Loss:
    """The weighted sum of losses over the *same* mask; each part keeps its unweighted metrics.

    Raises:
        ValueError: ``weights`` names other losses than ``losses``.
    """
    if not losses or losses.keys() != weights.keys():
        raise ValueError(f"weights: expected one for each of {sorted(losses)}, got {sorted(weights)}")
    parts = [losses[name] for name in losses]
    total = sum((weights[name] * losses[name].total for name in losses), start=jnp.zeros_like(parts[0].total))
    return Loss(total, parts[0].weight, {key: value for part in parts for key, value in part.metrics.items()})


def logit_loss(student, teacher, targets, mask, loss: LogitLoss, *, vocab_size: int | None = None) -> Loss:
    """What ``loss`` describes, of whole logits; :func:`effarch.distill.chunked.chunked_logit_loss` never holds them.

    Args:
        student: logits [B,T,V], any float dtype.
        teacher: logits [B,T,W]; W = V, or both at least ``vocab_size``.
        targets: ids of the text [B,T]; ignored where the mask is 0.
        mask: bool or weights >= 0 [B,T].
        loss: which divergence, its temperature, and the share of the cross-entropy.
        vocab_size: how many leading entries both vocabularies share; the rest is padding.

    Raises:
        ValueError: shapes or vocabularies that do not fit.
    """
    student, teacher = crop_vocabulary(student, teacher, vocab_size)
    losses, weights = {}, {}
    if loss.weight > 0:
        losses[loss.kind], weights[loss.kind] = divergence_loss(student, teacher, mask, loss), loss.weight
    if loss.cross_entropy > 0:
        losses["cross_entropy"], weights["cross_entropy"] = cross_entropy(student, targets, mask), loss.cross_entropy
    return mix(losses, weights)


def check_shape(name: str, x: Array, shape: tuple[int, ...]) -> None:
    """Raises ValueError unless ``x`` has ``shape``."""
    if x.shape != shape:
        raise ValueError(f"{name}: expected shape {shape}, got {x.shape}")
