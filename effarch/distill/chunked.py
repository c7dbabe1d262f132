"""Losses from hidden states: the head runs on one chunk of positions at a time, so [B,T,vocab] never exists.

A checkpointed scan over chunks of T returns one number per position and loss; the logits of a chunk are recomputed in
the backward pass. A head is a function ``[B,C,D] -> [B,C,V]``; parameters that it closes over receive their gradients,
summed over the chunks. Any T: the last chunk is filled up with masked positions.
"""

from collections.abc import Callable, Mapping

import jax
import jax.numpy as jnp

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
from effarch.typing import Array, Float, Int

Head = Callable[[Array], Array]


def chunked_logit_loss(
    student_hidden: Float[Array, "B T D"],
    teacher_hidden: Float[Array, "B T E"],
    student_head: Head,
    teacher_head: Head,
    targets: Int[Array, "B T"],
    mask: Array,
    loss: LogitLoss,
    chunk: int = 256,
    *,
    vocab_size: int | None = None,
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

    Raises:
        ValueError: shapes or vocabularies that do not fit, or chunk < 1.
    """

    def body(x: Mapping[str, Array]) -> dict[str, Array]:
        student = student_head(clear_masked(x["student"], x["mask"]))
        teacher = teacher_head(clear_masked(x["teacher"], x["mask"]))
        student, teacher = crop_vocabulary(student, teacher, vocab_size)
        values = {}
        if loss.weight > 0:
            values[loss.kind] = token_divergence(student, teacher, loss)
        if loss.cross_entropy > 0:
            values["cross_entropy"] = token_nll(student, x["targets"])
        return values

    values = _over_chunks(body, chunk, mask, student=student_hidden, teacher=teacher_hidden, targets=targets)
    weights = {loss.kind: loss.weight, "cross_entropy": loss.cross_entropy}
    return mix({k: summed(k, v, mask) for k, v in values.items()}, {k: weights[k] for k in values})


def chunked_cross_entropy(
    hidden: Float[Array, "B T D"], head: Head, targets: Int[Array, "B T"], mask: Array, chunk: int = 256
) -> Loss:
    """The cross-entropy of ``targets`` in sums of nats over positions; metrics ``cross_entropy`` and ``correct``.

    ``correct`` is the mask's weight of the positions whose largest logit is the target's. Args and Raises as
    :func:`chunked_logit_loss`.
    """
    scores = token_scores(hidden, head, targets, mask, chunk)
    loss, correct = summed("cross_entropy", scores["nll"], mask), summed("correct", scores["correct"], mask)
    return Loss(loss.total, loss.weight, loss.metrics | correct.metrics)


def token_scores(
    hidden: Float[Array, "B T D"], head: Head, targets: Int[Array, "B T"], mask: Array, chunk: int = 256
) -> dict[str, Float[Array, "B T"]]:
    """``nll`` (nats) and ``correct`` (0 or 1) of every position, float32; 0 where the mask is 0."""

    def body(x: Mapping[str, Array]) -> dict[str, Array]:
        logits = head(clear_masked(x["hidden"], x["mask"]))
        nll = token_nll(logits, x["targets"])
        return {"nll": nll, "correct": (jnp.argmax(logits, axis=-1) == x["targets"]).astype(nll.dtype)}

    return _over_chunks(body, chunk, mask, hidden=hidden, targets=targets)


def token_kl(
    student_hidden: Float[Array, "B T D"],
    teacher_hidden: Float[Array, "B T E"],
    student_head: Head,
    teacher_head: Head,
    mask: Array,
    chunk: int = 256,
    *,
    vocab_size: int | None = None,
) -> Float[Array, "B T"]:
    """KL(teacher || student) of every position in nats at temperature 1, float32; 0 where the mask is 0."""

    def body(x: Mapping[str, Array]) -> dict[str, Array]:
        student = student_head(clear_masked(x["student"], x["mask"]))
        teacher = teacher_head(clear_masked(x["teacher"], x["mask"]))
        return {"kl": token_divergence(student, teacher, LogitLoss(kind="forward_kl"), vocab_size)}

    return _over_chunks(body, chunk, mask, student=student_hidden, teacher=teacher_hidden)["kl"]


def _over_chunks(body: Callable, chunk: int, mask: Array, **arrays: Array) -> dict[str, Float[Array, "B T"]]:
    """``body`` of every chunk of ``arrays`` [B,T,...] and the mask, joined again to [B,T]; 0 where the mask is 0."""
    if chunk < 1:
        raise ValueError(f"chunk: expected at least 1 position, got {chunk}")
    for name, x in arrays.items():
        check_shape(name, x, (*mask.shape, *x.shape[2:]))
    batch, length = mask.shape
    chunk = min(chunk, max(length, 1))
    count = -(-length // chunk)

    def split(
        x: Array,
    ) -> Array:  # [B,T,...] -> [N,B,C,...]: slices of a carried whole would cost T per chunk in reverse
        x = jnp.pad(x, ((0, 0), (0, count * chunk - length), *((0, 0) for _ in x.shape[2:])))
        return jnp.moveaxis(x.reshape(batch, count, chunk, *x.shape[2:]), 1, 0)

    def step(_: None, x: dict[str, Array]) -> tuple[None, dict[str, Array]]:
        seen = x["mask"].astype(bool)
        return None, {name: jnp.where(seen, value, jnp.zeros_like(value)) for name, value in body(x).items()}

    xs = {name: split(x) for name, x in arrays.items()} | {"mask": split(mask)}
    _, values = jax.lax.scan(jax.checkpoint(step, prevent_cse=False), None, xs)
    return {name: jnp.moveaxis(v, 0, 1).reshape(batch, count * chunk)[:, :length] for name, v in values.items()}
