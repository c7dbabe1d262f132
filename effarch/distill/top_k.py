"""A teacher's distribution by its K largest probabilities, and the divergence of a student from it.

What is left of the vocabulary is one bucket, the *tail*, whose probability is known: ``1 - sum`` of the K. Both models
become distributions over K + 1 buckets, and any divergence is taken between these.

The bias: merging outcomes loses what tells them apart within the tail (the data-processing inequality), so a bucketed
divergence is at most the full one, whatever its kind, and equal to it where K covers the vocabulary or where, in the
tail, the student is proportional to the teacher. It is 0 without the two being equal: nothing asks for an order within
the tail.
"""

import dataclasses
import math
from functools import partial

import jax
import jax.numpy as jnp

from effarch.distill.divergences import RANGE, LogitLoss, divergence, log_probabilities
from effarch.ops.precision import accumulator
from effarch.typing import Array, Float, Int

NOISE = 1e-6  # 1 - sum in float32 is good to a few 1e-7: a tail below this cannot be told from an empty one


@partial(jax.tree_util.register_dataclass, data_fields=["indices", "log_probs"], meta_fields=[])
@dataclasses.dataclass(frozen=True)
class TopK:
    """The K most likely tokens of every position.

    Attributes:
      indices: their ids, distinct, int32 ``[B, T, K]``.
      log_probs: their log-probabilities in nats under the whole vocabulary, float32 ``[B, T, K]``; a temperature is
        in them already.
    """

    indices: Int[Array, "*b K"]
    log_probs: Float[Array, "*b K"]

    def buckets(self) -> Float[Array, "*b K+1"]:
        """Log-probabilities of the K tokens and, last, of the tail, which is at least ``NOISE / 2``.

        Normalised: rounded (quantised) log-probabilities that sum to more than 1 are scaled to 1.
        """
        log_probs = jnp.maximum(self.log_probs.astype(accumulator(self.log_probs)), -RANGE)
        rest = -jnp.expm1(jax.nn.logsumexp(log_probs, axis=-1, keepdims=True))
        tail = jnp.log(jnp.maximum(rest, NOISE / 2))
        return jax.nn.log_softmax(jnp.concatenate([log_probs, tail], axis=-1), axis=-1)


def top_k(logits: Float[Array, "*b V"], k: int, temperature: float = 1.0) -> TopK:
    """The ``k`` most likely tokens of ``softmax(logits / temperature)``, the most likely first.

    Args:
      logits: any float dtype; computed in float32.
      k: 1 to V.
      temperature: above 0; that of the loss which will read them.

    Raises:
      ValueError: k or temperature out of range.
    """
    if not 1 <= k <= logits.shape[-1]:
        raise ValueError(f"k: expected 1 to {logits.shape[-1]} (the vocabulary), got {k}")
    log_probs, indices = jax.lax.top_k(log_probabilities(logits, temperature), k)
    return TopK(indices.astype(jnp.int32), log_probs.astype(jnp.float32))


def student_buckets(
    logits: Float[Array, "*b V"], indices: Int[Array, "*b K"], temperature: float
) -> Float[Array, "*b K+1"]:
    """Log-probabilities of the student's K + 1 buckets; the tail is a log-sum over all entries but the K."""
    log_q = log_probabilities(logits, temperature)
    chosen = jnp.take_along_axis(log_q, indices, axis=-1)
    rest = put_in_rows(log_q, indices, jnp.asarray(-2 * RANGE, log_q.dtype))
    return jnp.concatenate([chosen, jax.nn.logsumexp(rest, axis=-1, keepdims=True)], axis=-1)


def put_in_rows(x: Float[Array, "*b V"], places: Int[Array, "*b K"], values: Array) -> Float[Array, "*b V"]:
    """``x`` with ``values``, which broadcast to ``[*b, K]``, at ``places`` of each row; places beyond V are dropped.

    ``jnp.put_along_axis``, but of every row for itself: where rows are split over devices, that one gathers them all.
    """

    def put(row: Array, places: Array, values: Array) -> Array:
        return row.at[places].set(values, mode="drop")

    for _ in range(x.ndim - 1):
        put = jax.vmap(put)
    return put(x, places, jnp.broadcast_to(values, places.shape))


def bucket_divergence(log_q: Float[Array, "*b K+1"], teacher: TopK, loss: LogitLoss) -> Float[Array, "*b"]:
    """The divergence of a student's buckets from the teacher's.

    Where the teacher's tail is below ``NOISE``, so may the student's be without cost: rounding is not to be weighed by
    the logarithm of a probability of 1e-20.
    """
    log_p = jax.lax.stop_gradient(teacher.buckets())
    dtype = accumulator(log_q, log_p)
    log_q, log_p = log_q.astype(dtype), log_p.astype(dtype)
    tail, taught = log_q[..., -1:], log_p[..., -1:]
    tail = jnp.where(taught < math.log(NOISE), jnp.maximum(tail, taught), tail)
    return divergence(jnp.concatenate([log_q[..., :-1], tail], axis=-1), log_p, loss)


def token_top_k_divergence(student: Float[Array, "*b V"], teacher: TopK, loss: LogitLoss) -> Float[Array, "*b"]:
    """The divergence named by ``loss.kind`` over the K + 1 buckets at every position, times ``loss.scale``.

    At most that of the whole vocabulary (see the module's text). The teacher is a constant.

    Args:
      student: logits, any float dtype; ``loss.temperature`` divides them.
      teacher: taken at the same temperature.
      loss: which divergence, and the temperature.

    Raises:
      ValueError: shapes that do not fit, or K above V.
    """
    if teacher.indices.shape != teacher.log_probs.shape or teacher.indices.shape[:-1] != student.shape[:-1]:
        raise ValueError(
            f"teacher: expected indices and log_probs of shape {(*student.shape[:-1], 'K')}, got "
            f"{teacher.indices.shape} and {teacher.log_probs.shape}"
        )
    if teacher.indices.shape[-1] > student.shape[-1]:
        raise ValueError(f"teacher: expected K of at most {student.shape[-1]}, got {teacher.indices.shape[-1]}")
    return bucket_divergence(student_buckets(student, teacher.indices, loss.temperature), teacher, loss)
