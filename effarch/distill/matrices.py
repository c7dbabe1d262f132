"""Losses of mixing matrices, ``M [B, H, T, S]`` with ``o_t = sum_s M_ts v_s``, under the conventions of ``losses``."""

from typing import Literal

import jax
import jax.numpy as jnp
from pydantic import Field

from effarch.config import Config
from effarch.distill.losses import Loss, check_shape, mix, summed
from effarch.ops.precision import accumulator
from effarch.typing import Array, Float

LEAST = 1e-8  # a weight below it counts as it: its logarithm, and no gradient


class MatrixLoss(Config):
    """The distance between the mixing matrices of teacher and student, row by row: a row is what a token reads."""

    kind: Literal["frobenius", "cross_entropy"] = Field("frobenius", description="of entries, or of attention weights")
    weight: float = Field(1.0, gt=0, description="factor of the loss")


def matrix_frobenius(student, teacher, mask) -> Loss:
    """The squared Frobenius distance (MOHAWK, 2408.10189), a mean over heads and a sum over rows.

    Of rows that sum to one it is at most 2. Differences are clipped to 1e12, where a square would overflow.
    """
    student, teacher = _matrix_pair(student, teacher, mask)
    error = jnp.square(jnp.clip(student - teacher, -1e12, 1e12)).sum(axis=-1).mean(axis=1)
    return summed("frobenius", error, mask)


def matrix_cross_entropy(student, teacher, mask) -> Loss:
    """The cross-entropy of attention weights (Hedgehog, 2402.04347), less the teacher's entropy: 0 where they agree.

    ``sum_s A_ts (log A_ts - log M_ts)`` in nats, a mean over heads and a sum over rows. The gradient is that of the
    cross-entropy. Rows of both must be weights, >= 0 and of sum 1.
    """
    student, teacher = _matrix_pair(student, teacher, mask)
    log_student, log_teacher = (jnp.log(jnp.clip(x, LEAST, 1.0)) for x in (student, teacher))
    return summed("attention_kl", (teacher * (log_teacher - log_student)).sum(axis=-1).mean(axis=1), mask)


def _matrix_pair(student: Float[Array, "B H T S"], teacher: Array, mask: Array) -> tuple[Array, Array]:
    check_shape("teacher", teacher, student.shape)
    check_shape("mask", mask, (student.shape[0], student.shape[2]))
    dtype, seen = accumulator(student, teacher), mask.astype(bool)[:, None, :, None]
    pair = (student, jax.lax.stop_gradient(teacher))
    student, teacher = (jnp.where(seen, x.astype(dtype), jnp.zeros((), dtype)) for x in pair)
    return student, teacher


def matrix_loss(student: Float[Array, "B H T S"], teacher: Array, mask: Float[Array, "B T"], loss: MatrixLoss) -> Loss:
    """What ``loss`` describes, of mixing matrices."""
    part = (matrix_frobenius if loss.kind == "frobenius" else matrix_cross_entropy)(student, teacher, mask)
    return mix({loss.kind: part}, {loss.kind: loss.weight})
