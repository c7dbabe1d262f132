"""Losses from hidden states: the head runs on one chunk of positions at a time, so [B,T,vocab] never exists.

A checkpointed scan over chunks of T returns one number per position and loss; the logits of a chunk are recomputed in
the backward pass. A head is a function ``[B,C,D] -> [B,C,V]``; parameters that it closes over receive their gradients,
summed over the chunks. Any T: the last chunk is filled up with masked positions.

Where the vocabulary is large not even [B,C,V] exists: within a chunk of positions, only the logits of ``vocab_chunk``
entries do, in slices of a :class:`effarch.nn.head.Head`, which ``LM.head`` is. Every kind of :class:`LogitLoss` can be
taken so (:mod:`effarch.distill.vocabulary`). None, the default, is 8,192 for a vocabulary above 65,536 and whole rows,
which are faster where they fit, below or where the head is a mere function; the vocabulary's size asks for whole rows.

Where the rules split a Head over "embed" (``mesh.fsdp``), every device gathers it before the first chunk and keeps it,
and its gradient in float32, until the last: the memory of two heads, for sending one head and not one per chunk. The
compilers for TPUs and GPUs then sum the gradient over devices once, too; of slices of a vocabulary they sum it in every
chunk, so that larger chunks send less.
"""

from collections.abc import Callable, Mapping

import jax
import jax.numpy as jnp

from effarch import axes
from effarch.distill.buckets import sliced_nll, sliced_top_k_divergence
from effarch.distill.losses import (
    LogitLoss,
    Loss,
    check_shape,
    clear_masked,
    crop_vocabulary,
    mix,
    summed,
    token_divergence,
    token_nll,
)
from effarch.distill.top_k import TopK, token_top_k_divergence
from effarch.distill.vocabulary import default_chunk, sliced_divergence
from effarch.nn.head import Head
from effarch.typing import Array, Float, Int

HeadFn = Callable[[Array], Array]


def chunked_logit_loss(
    student_hidden: Float[Array, "B T D"],
    teacher_hidden: Float[Array, "B T E"],
    student_head: HeadFn,
    teacher_head: HeadFn,
    targets: Int[Array, "B T"],
    mask: Array,
    loss: LogitLoss,
    chunk: int = 256,
    *,
    vocab_size: int | None = None,
    vocab_chunk: int | None = None,
) -> Loss:
    """:func:`effarch.distill.losses.logit_loss` of the heads' logits, in sums of nats over positions.

    Args:
        student_hidden: what the student's head reads [B,T,D].
        teacher_hidden: what the teacher's head reads [B,T,E]; no gradient flows into it or its head.
        student_head: ``[B,C,D] -> [B,C,V]``.
        teacher_head: ``[B,C,E] -> [B,C,W]``.
        targets: ids of the text [B,T]; ignored where the mask is 0.
        mask: bool or weights >= 0 [B,T].
        loss: which divergence, its temperature, and the share of the cross-entropy.
        chunk: positions whose logits exist at a time, >= 1.
        vocab_size: how many leading entries both vocabularies share; the rest is padding.
        vocab_chunk: entries of the vocabulary whose logits exist at a time, >= 1; None: by its size.

    Raises:
        ValueError: shapes or vocabularies that do not fit, chunk or vocab_chunk < 1, or a mere function as
            head where vocab_chunk is given.
    """
    entries, (student_head, teacher_head) = _prepared(vocab_chunk, student_head, teacher_head)

    def body(x: Mapping[str, Array]) -> dict[str, Array]:
        student, teacher = clear_masked(x["student"], x["mask"]), clear_masked(x["teacher"], x["mask"])
        values = {}
        if entries is not None:
            args = student, _sliced(student_head), teacher, _sliced(teacher_head)
            if loss.weight > 0:
                values[loss.kind] = sliced_divergence(*args, loss, vocab_size, entries)
            if loss.cross_entropy > 0:
                values["cross_entropy"] = sliced_nll(*args[:2], x["targets"], vocab_size, entries)[0]
            return values
        student, teacher = crop_vocabulary(student_head(student), teacher_head(teacher), vocab_size)
        if loss.weight > 0:
            values[loss.kind] = token_divergence(student, teacher, loss)
        if loss.cross_entropy > 0:
            values["cross_entropy"] = token_nll(student, x["targets"])
        return values

    arrays = {"student": student_hidden, "teacher": teacher_hidden, "targets": targets}
    return _mixed(_over_chunks(body, chunk, entries, mask, **arrays), mask, loss)


def chunked_top_k_loss(
    student_hidden: Float[Array, "B T D"],
    student_head: HeadFn,
    teacher: TopK,
    targets: Int[Array, "B T"],
    mask: Array,
    loss: LogitLoss,
    chunk: int = 256,
    *,
    vocab_chunk: int | None = None,
) -> Loss:
    """The divergence from a teacher's K largest probabilities and its tail, mixed with the cross-entropy.

    :func:`effarch.distill.top_k.token_top_k_divergence` has the bias.

    Args:
        teacher: ``[B,T,K]``, taken at ``loss.temperature``; its entries are ids of the student's vocabulary.
        student_hidden, student_head, targets, mask, loss, chunk, vocab_chunk: as for :func:`chunked_logit_loss`.

    Raises:
        ValueError: as :func:`chunked_logit_loss`.
    """
    entries, (student_head,) = _prepared(vocab_chunk, student_head)

    def body(x: Mapping[str, Array]) -> dict[str, Array]:
        hidden = clear_masked(x["student"], x["mask"])
        top = TopK(clear_masked(x["indices"], x["mask"]), clear_masked(x["log_probs"], x["mask"]))
        values = {}
        if entries is not None:
            head = _sliced(student_head)
            if loss.weight > 0:
                values[loss.kind] = sliced_top_k_divergence(hidden, head, top, loss, entries)
            if loss.cross_entropy > 0:
                values["cross_entropy"] = sliced_nll(hidden, head, x["targets"], None, entries)[0]
            return values
        logits = student_head(hidden)
        if loss.weight > 0:
            values[loss.kind] = token_top_k_divergence(logits, top, loss)
        if loss.cross_entropy > 0:
            values["cross_entropy"] = token_nll(logits, x["targets"])
        return values

    arrays = {"student": student_hidden, "indices": teacher.indices, "log_probs": teacher.log_probs}
    return _mixed(_over_chunks(body, chunk, entries, mask, targets=targets, **arrays), mask, loss)


def _mixed(values: Mapping[str, Array], mask: Array, loss: LogitLoss) -> Loss:
    weights = {loss.kind: loss.weight, "cross_entropy": loss.cross_entropy}
    return mix({k: summed(k, v, mask) for k, v in values.items()}, {k: weights[k] for k in values})


def chunked_cross_entropy(
    hidden: Float[Array, "B T D"],
    head: HeadFn,
    targets: Int[Array, "B T"],
    mask: Array,
    chunk: int = 256,
    *,
    vocab_chunk: int | None = None,
) -> Loss:
    """The cross-entropy of ``targets`` in sums of nats over positions; metrics ``cross_entropy`` and ``correct``.

    ``correct`` is the mask's weight of the positions whose largest logit is the target's. Args and Raises as
    :func:`chunked_logit_loss`.
    """
    scores = token_scores(hidden, head, targets, mask, chunk, vocab_chunk=vocab_chunk)
    loss, correct = summed("cross_entropy", scores["nll"], mask), summed("correct", scores["correct"], mask)
    return Loss(loss.total, loss.weight, loss.metrics | correct.metrics)


def token_scores(
    hidden: Float[Array, "B T D"],
    head: HeadFn,
    targets: Int[Array, "B T"],
    mask: Array,
    chunk: int = 256,
    *,
    vocab_chunk: int | None = None,
) -> dict[str, Array]:
    """``nll`` (nats), ``correct`` (0 or 1), float32, and ``best``, the likeliest id, of every position.

    0 where the mask is 0.
    """
    entries, (head,) = _prepared(vocab_chunk, head)

    def body(x: Mapping[str, Array]) -> dict[str, Array]:
        hidden, targets = clear_masked(x["hidden"], x["mask"]), x["targets"]
        if entries is not None:
            nll, best = sliced_nll(hidden, _sliced(head), targets, None, entries)
        else:
            logits = head(hidden)
            nll, best = token_nll(logits, targets), jnp.argmax(logits, axis=-1)
        best = best.astype(targets.dtype)
        return {"nll": nll, "correct": (best == targets).astype(nll.dtype), "best": best}

    return _over_chunks(body, chunk, entries, mask, hidden=hidden, targets=targets)


def token_kl(
    student_hidden: Float[Array, "B T D"],
    teacher_hidden: Float[Array, "B T E"],
    student_head: HeadFn,
    teacher_head: HeadFn,
    mask: Array,
    chunk: int = 256,
    *,
    vocab_size: int | None = None,
    vocab_chunk: int | None = None,
) -> Float[Array, "B T"]:
    """KL(teacher || student) of every position in nats at temperature 1, float32; 0 where the mask is 0."""
    loss = LogitLoss(kind="forward_kl")
    entries, (student_head, teacher_head) = _prepared(vocab_chunk, student_head, teacher_head)

    def body(x: Mapping[str, Array]) -> dict[str, Array]:
        student, teacher = clear_masked(x["student"], x["mask"]), clear_masked(x["teacher"], x["mask"])
        if entries is not None:
            args = student, _sliced(student_head), teacher, _sliced(teacher_head)
            return {"kl": sliced_divergence(*args, loss, vocab_size, entries)}
        return {"kl": token_divergence(student_head(student), teacher_head(teacher), loss, vocab_size)}

    return _over_chunks(body, chunk, entries, mask, student=student_hidden, teacher=teacher_hidden)["kl"]


def _prepared(vocab_chunk: int | None, *heads: HeadFn) -> tuple[int | None, tuple[HeadFn, ...]]:
    """Entries of the vocabulary at a time, None for whole rows; and the heads, sent to every device once.

    Inside the loop a head that the rules split over "embed" would be sent in every chunk, and so would its gradient.
    """
    if vocab_chunk is not None and vocab_chunk < 1:
        raise ValueError(f"vocab_chunk: expected at least 1 entry, got {vocab_chunk}")
    found = tuple(head.gathered() if isinstance(head, Head) else head for head in heads)
    if vocab_chunk is None and not all(isinstance(head, Head) for head in heads):
        return None, found
    size = max(_sliced(head).vocab_size for head in heads)
    entries = default_chunk(size) if vocab_chunk is None else vocab_chunk
    return entries if entries is not None and entries < size else None, found


def _sliced(head: HeadFn) -> Head:
    if not isinstance(head, Head):
        raise ValueError(f"head: expected an effarch.nn.head.Head to slice by vocab_chunk, got {type(head).__name__}")
    return head


def _over_chunks(
    body: Callable, chunk: int, entries: int | None, mask: Array, **arrays: Array
) -> dict[str, Float[Array, "B T"]]:
    """``body`` of every chunk of ``arrays`` [B,T,...] and the mask, joined again to [B,T]; 0 where the mask is 0."""
    if chunk < 1:
        raise ValueError(f"chunk: expected at least 1 position, got {chunk}")
    for name, x in arrays.items():
        check_shape(name, x, (*mask.shape, *x.shape[2:]))
    batch, length = mask.shape
    ways = _ways(length)  # every device takes chunks of its own tokens
    local = length // ways
    chunk = min(chunk, max(local, 1))
    count = -(-local // chunk)

    def split(
        x: Array,
    ) -> Array:  # [B,T,...] -> [N,B,C,...]: slices of a carried whole would cost T per chunk in reverse
        rest = x.shape[2:]
        if not rest:  # ids and masks are on every device; to shift them there exchanges nothing
            x = axes.constrain(x, "batch", None)
        x = axes.constrain(x, "batch", "time", *(None for _ in rest)).reshape(batch, ways, local, *rest)
        x = jnp.pad(x, ((0, 0), (0, 0), (0, count * chunk - local), *((0, 0) for _ in rest)))
        x = jnp.moveaxis(x.reshape(batch, ways, count, chunk, *rest), 2, 0)
        return axes.constrain(
            x.reshape(count, batch, ways * chunk, *rest), None, "batch", "time", *(None for _ in rest)
        )

    def join(x: Array) -> Array:  # [N,B,C] -> [B,T]
        x = jnp.moveaxis(x.reshape(count, batch, ways, chunk), 0, 2).reshape(batch, ways, count * chunk)
        return axes.constrain(x[:, :, :local].reshape(batch, length), "batch", "time")

    def step(_: None, x: dict[str, Array]) -> tuple[None, dict[str, Array]]:
        seen = x["mask"].astype(bool)
        return None, {name: jnp.where(seen, value, jnp.zeros_like(value)) for name, value in body(x).items()}

    xs = {name: split(x) for name, x in arrays.items()} | {"mask": split(mask)}
    # What is sliced keeps no logits, and recomputes them by itself.
    _, values = jax.lax.scan(step if entries else jax.checkpoint(step, prevent_cse=False), None, xs)
    return {name: join(value) for name, value in values.items()}


def _ways(length: int) -> int:
    """Devices that the tokens of a row are split over; 1 where they do not divide them."""
    found = axes.context_parallel(length)
    ways = 1 if found is None else found[0].shape[found[1]]
    return 1 if length % ways else ways
