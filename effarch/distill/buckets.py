"""Log-probabilities of K entries and of all others together, from one pass over slices of the vocabulary.

K = 1, the target, gives the cross-entropy; the K largest of a teacher give the student's side of a top-k divergence.
The others are summed by themselves, never as 1 less the K, so that a small tail keeps its digits.
"""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp

from effarch.distill.divergences import RANGE, LogitLoss, below_largest, bounded
from effarch.distill.top_k import TopK, bucket_divergence, put_in_rows
from effarch.distill.vocabulary import lowest, over_rows, pull_back, scan_slices
from effarch.nn.head import Head
from effarch.ops.precision import accumulator
from effarch.typing import Array, Float, Int


def sliced_nll(
    hidden: Float[Array, "*b D"], head: Head, targets: Int[Array, "*b"], vocab_size: int | None, chunk: int
) -> tuple[Float[Array, "*b"], Int[Array, "*b"]]:
    """``(nll, best)``: :func:`effarch.distill.losses.token_nll` of the head's logits, and the id with the largest.

    Args:
      hidden, head: of the logits.
      targets: ids.
      vocab_size: how many leading entries count; None: all.
      chunk: entries whose logits exist at a time, >= 1.
    """
    size = head.vocab_size if vocab_size is None else vocab_size
    log_probs, best = _buckets(hidden, head, targets[..., None], 1.0, size, min(chunk, size))
    return jnp.where((targets >= 0) & (targets < size), -log_probs[..., 0], jnp.nan), best


def sliced_top_k_divergence(
    hidden: Float[Array, "*b D"], head: Head, teacher: TopK, loss: LogitLoss, chunk: int
) -> Float[Array, "*b"]:
    """:func:`effarch.distill.top_k.token_top_k_divergence` of the head's logits, at every position, in nats."""
    size = head.vocab_size
    log_q, _ = _buckets(hidden, head, teacher.indices, loss.temperature, size, min(chunk, size))
    return bucket_divergence(log_q, teacher, loss)


@partial(jax.custom_vjp, nondiff_argnums=(3, 4, 5))
def _buckets(hidden, head, indices, temperature: float, size: int, chunk: int) -> tuple[Array, Array]:
    """Log-probabilities of the entries ``indices`` and, last, of all others; and the entry with the largest logit.

    An index outside the vocabulary is nowhere: its bucket is at ``-RANGE``.
    """
    return _buckets_forward(hidden, head, indices, temperature, size, chunk)[0]


def _local(indices: Array, start: Array, new: Array, like: Array) -> tuple[Array, Array, Array]:
    """Places of ``indices`` in a slice (its length where they are not in it), and which of the slice are the rest."""
    chunk = new.shape[0]
    local = indices - start.astype(indices.dtype)
    inside = (local >= 0) & (local < chunk)
    local = jnp.where(inside, local, chunk)
    inside &= new[jnp.minimum(local, chunk - 1)]
    rest = put_in_rows(over_rows(new, like), local, jnp.asarray(False))
    return local, inside, rest


def _buckets_forward(hidden, head, indices, temperature, size, chunk):
    dtype = accumulator(hidden)
    least = lowest(dtype)

    def step(carry: tuple, start: Array, new: Array) -> tuple:
        chosen, rest_largest, total, largest, best = carry
        logits = bounded(head.entries(start, chunk)(hidden))
        local, inside, rest = _local(indices, start, new, logits)
        found = jnp.take_along_axis(logits, jnp.minimum(local, chunk - 1), axis=-1)
        chosen = jnp.where(inside, found, chosen)
        after = jnp.maximum(rest_largest, jnp.max(jnp.where(rest, logits, least), axis=-1, keepdims=True))
        terms = jnp.where(rest, jnp.exp(below_largest(logits, after, temperature)), 0.0)
        total = total * jnp.exp(below_largest(rest_largest, after, temperature))
        total += jnp.sum(terms, axis=-1, keepdims=True)
        here = jnp.max(logits, axis=-1)
        best = jnp.where(here > largest, start + jnp.argmax(logits, axis=-1).astype(best.dtype), best)
        return chosen, after, total, jnp.maximum(largest, here), best

    one = jnp.full((*hidden.shape[:-1], 1), least, dtype)
    start = (jnp.full(indices.shape, least, dtype), one, 0 * one, one[..., 0], jnp.zeros(one.shape[:-1], jnp.int32))
    chosen, rest_largest, total, largest, best = scan_slices(step, start, size, chunk)
    largest = largest[..., None]
    tail = below_largest(rest_largest, largest, temperature) + jnp.log(jnp.where(total > 0, total, 1.0))
    tail = jnp.where(total > 0, tail, -2 * RANGE)
    scores = jnp.concatenate([below_largest(chosen, largest, temperature), tail], axis=-1)
    log_total = jax.nn.logsumexp(scores, axis=-1, keepdims=True)
    log_probs = scores - log_total
    return (log_probs, best), (hidden, head, indices, (largest, log_total), log_probs)


def _buckets_backward(temperature: float, size: int, chunk: int, residuals: tuple, cotangents: Any) -> tuple:
    hidden, head, indices, statistics, log_probs = residuals
    cotangent = cotangents[0]
    cotangent = cotangent - jnp.exp(log_probs) * jnp.sum(cotangent, axis=-1, keepdims=True)
    tail = log_probs[..., -1:]

    def gradient(log_q: Array, start: Array, new: Array) -> Array:
        local, inside, rest = _local(indices, start, new, log_q)
        share = jnp.exp(jnp.where(rest, jnp.minimum(log_q - tail, 0.0), -RANGE))  # of the tail
        spread = cotangent[..., -1:] * share
        own = jnp.where(inside, cotangent[..., :-1], 0.0)
        return put_in_rows(spread, local, own)

    return (*pull_back(gradient, hidden, head, statistics, temperature, size, chunk), None)


_buckets.defvjp(_buckets_forward, _buckets_backward)
