"""Divergences of logits that exist for one slice of the vocabulary at a time.

A scan over slices of the head keeps a running largest logit and a running sum (online log-sum-exp); the backward pass
scans again, forms each slice's logits anew, and adds to the gradients of the hidden states and of the head. Beside
these gradients no array has the size of the vocabulary.

Any divergence that is a sum over the vocabulary of a function of ``log q`` and ``log p`` can be taken so, which all
of :mod:`effarch.distill.divergences` are: one pass for the two normalisations, one for the sum. The cross-entropy and
the top-k divergences need one pass only: they are functions of K + 1 buckets (:mod:`effarch.distill.buckets`).

The price is time: a divergence costs five products of the student's head and three of the teacher's in training,
where whole rows, recomputed as they are, cost four and two. On a CPU, value and gradients of the forward KL of 256
positions, D = 64, vocabulary 151,936: 82 MB of temporaries and 3.4 s against 1,484 MB and 1.9 s (one row array [C,V]:
148 MB); of the cross-entropy 50 MB and 0.7 s against 890 MB and 1.2 s. Nothing else differs: the same bounds hold, the
same float32. A head whose vocabulary is split over devices would be gathered slice by slice: it wants whole rows.
"""

from collections.abc import Callable
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np

from effarch import axes
from effarch.distill.divergences import LogitLoss, below_largest, bounded, summands
from effarch.distill.losses import common_vocabulary
from effarch.nn.head import Head
from effarch.ops.precision import accumulator
from effarch.typing import Array, Float, PyTree

ABOVE, CHUNK = 65_536, 8_192


def default_chunk(vocab_size: int) -> int | None:
    """Entries at a time for a vocabulary of this size: 8,192 above 65,536, else all (None).

    All, too, where the rules in force split the vocabulary over devices.
    """
    rules = axes.current()
    split = rules is not None and rules.mesh_axes("vocab")
    return CHUNK if vocab_size > ABOVE and not split else None


def scan_slices(step: Callable[[PyTree, Array, Array], PyTree], carry: PyTree, size: int, chunk: int) -> PyTree:
    """``carry = step(carry, start, new)`` for every slice ``start : start + chunk`` of the vocabulary.

    ``new [chunk]`` is False for entries that were in a slice before: the last slice ends with the vocabulary.
    """
    first = np.arange(0, size, chunk, dtype=np.int32)
    start = np.minimum(first, size - chunk)
    new = start[:, None] + np.arange(chunk, dtype=np.int32) >= first[:, None]
    slices = jnp.asarray(start), jnp.asarray(new)

    # Inside another scan jax would compute what depends on the slices alone beforehand, for all slices: 38 masks
    # [C, chunk] at a vocabulary of 151,936. What is checkpointed it leaves in its place.
    @partial(jax.checkpoint, prevent_cse=False)
    def body(carry: PyTree, at: tuple[Array, Array]) -> tuple[PyTree, None]:
        return step(carry, *at), None

    return jax.lax.scan(body, carry, slices)[0]


def lowest(dtype: jnp.dtype) -> float:
    """Of bounded logits."""
    return -float(jnp.finfo(dtype).max) / 4


def normalizer(hidden: Array, head: Head, temperature: float, size: int, chunk: int) -> tuple[Array, Array]:
    """``(largest, log sum exp((logits - largest) / temperature))``, each ``[..., 1]``."""
    dtype = accumulator(hidden)

    def step(carry: tuple[Array, Array], start: Array, new: Array) -> tuple[Array, Array]:
        largest, total = carry
        logits = bounded(head.entries(start, chunk)(hidden))
        after = jnp.maximum(largest, jnp.max(logits, axis=-1, keepdims=True))
        terms = jnp.where(over_rows(new, logits), jnp.exp(below_largest(logits, after, temperature)), 0.0)
        total = total * jnp.exp(below_largest(largest, after, temperature))
        return after, total + jnp.sum(terms, axis=-1, keepdims=True)

    ones = jnp.ones((*hidden.shape[:-1], 1), dtype)
    largest, total = scan_slices(step, (lowest(dtype) * ones, 0 * ones), size, chunk)
    return largest, jnp.log(total)


def over_rows(new: Array, logits: Array) -> Array:
    """``new [chunk]`` for every row of ``logits [..., chunk]``."""
    return jnp.broadcast_to(new.reshape((1,) * (logits.ndim - 1) + new.shape), logits.shape)


def pull_back(
    gradient: Callable[[Array, Array, Array], Array],
    hidden: Array,
    head: Head,
    statistics: tuple[Array, Array],
    temperature: float,
    size: int,
    chunk: int,
) -> tuple[Array, Head]:
    """Gradients of hidden states and head from that of the scaled logits, ``gradient(log_q, start, new)`` by slice."""

    def step(carry: tuple[Array, Head], start: Array, new: Array) -> tuple[Array, Head]:
        d_hidden, d_head = carry

        def scaled(hidden: Array, part: Head) -> Array:
            return below_largest(bounded(part(hidden)), statistics[0], temperature)

        logits, pull = jax.vjp(scaled, hidden, head.entries(start, chunk))
        to_hidden, to_part = pull(gradient(logits - statistics[1], start, new).astype(logits.dtype))
        to_part = jax.tree.map(lambda x: x.astype(accumulator(x)), to_part)
        return d_hidden + to_hidden.astype(d_hidden.dtype), d_head.plus(start, to_part)

    zeros = jax.tree.map(lambda x: jnp.zeros(x.shape, accumulator(x)), (hidden, head))
    found = scan_slices(step, zeros, size, chunk)
    return jax.tree.map(lambda x, like: x.astype(like.dtype), found, (hidden, head))


def sliced_divergence(
    hidden: Float[Array, "*b D"],
    head: Head,
    teacher_hidden: Float[Array, "*b E"],
    teacher_head: Head,
    loss: LogitLoss,
    vocab_size: int | None,
    chunk: int,
) -> Float[Array, "*b"]:
    """:func:`effarch.distill.losses.token_divergence` of two heads' logits, at every position, in nats.

    Args:
      hidden, head: the student's.
      teacher_hidden, teacher_head: constants: they receive no gradient.
      loss: which divergence, and its temperature.
      vocab_size: how many leading entries both vocabularies share; None: all.
      chunk: entries whose logits exist at a time, >= 1.

    Raises:
      ValueError: vocabularies that do not fit.
    """
    size = common_vocabulary(head.vocab_size, teacher_head.vocab_size, vocab_size)
    return _divergence(hidden, head, teacher_hidden, teacher_head, loss, size, min(chunk, size))


@partial(jax.custom_vjp, nondiff_argnums=(4, 5, 6))
def _divergence(hidden, head, teacher_hidden, teacher_head, loss: LogitLoss, size: int, chunk: int) -> Array:
    return _divergence_forward(hidden, head, teacher_hidden, teacher_head, loss, size, chunk)[0]


def _log_probabilities(head: Head, hidden: Array, statistics: tuple, temperature: float, start: Array, chunk: int):
    logits = bounded(head.entries(start, chunk)(hidden))
    return below_largest(logits, statistics[0], temperature) - statistics[1]


def _with_slope(log_q: Array, log_p: Array, loss: LogitLoss) -> tuple[Array, Array]:
    """The summands, and their derivatives for ``log_q``."""
    dtype = accumulator(log_q, log_p)
    log_q, log_p = log_q.astype(dtype), log_p.astype(dtype)
    return jax.jvp(lambda x: summands(x, log_p, loss), (log_q,), (jnp.ones_like(log_q),))


def _divergence_forward(hidden, head, teacher_hidden, teacher_head, loss, size, chunk):
    mine = normalizer(hidden, head, loss.temperature, size, chunk)
    theirs = normalizer(teacher_hidden, teacher_head, loss.temperature, size, chunk)

    def step(carry: tuple[Array, Array], start: Array, new: Array) -> tuple[Array, Array]:
        log_q = _log_probabilities(head, hidden, mine, loss.temperature, start, chunk)
        log_p = _log_probabilities(teacher_head, teacher_hidden, theirs, loss.temperature, start, chunk)
        value, slope = (jnp.where(over_rows(new, x), x, 0.0) for x in _with_slope(log_q, log_p, loss))
        return carry[0] + jnp.sum(value, axis=-1), carry[1] + jnp.sum(slope, axis=-1)

    zeros = jnp.zeros(hidden.shape[:-1], accumulator(hidden, teacher_hidden))
    value, slope = scan_slices(step, (zeros, zeros), size, chunk)
    return value * loss.scale, (hidden, head, teacher_hidden, teacher_head, mine, theirs, slope)


def _divergence_backward(loss: LogitLoss, size: int, chunk: int, residuals: tuple, cotangent: Array) -> tuple:
    hidden, head, teacher_hidden, teacher_head, mine, theirs, slope = residuals
    cotangent, slope = (cotangent * loss.scale)[..., None], slope[..., None]

    def gradient(log_q: Array, start: Array, new: Array) -> Array:
        log_p = _log_probabilities(teacher_head, teacher_hidden, theirs, loss.temperature, start, chunk)
        own = _with_slope(log_q, log_p, loss)[1]
        # Every entry lowers the others through the normalisation.
        return cotangent * jnp.where(over_rows(new, own), own - jnp.exp(log_q).astype(own.dtype) * slope, 0.0)

    d_hidden, d_head = pull_back(gradient, hidden, head, mine, loss.temperature, size, chunk)
    return d_hidden, d_head, None, None


_divergence.defvjp(_divergence_forward, _divergence_backward)
