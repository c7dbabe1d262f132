"""Losses of hidden states: pure functions ``(student, teacher, mask) -> Loss``, under the conventions of ``losses``."""

from typing import Literal

import jax
import jax.numpy as jnp
from pydantic import Field

from effarch.config import Config
from effarch.distill.losses import Loss, check_shape, clear_masked, mix, summed
from effarch.ops.precision import accumulator
from effarch.typing import Array, Float


class HiddenLoss(Config):
    """The distance between hidden states of teacher and student at the same position."""

    kind: Literal["mse", "cosine"] = "mse"
    normalize: bool = Field(True, description="divide by the variance of the teacher's features; mse only")
    weight: float = Field(1.0, gt=0, description="factor of the loss")


def hidden_mse(student, teacher, mask, *, normalize: bool = True) -> Loss:
    """Mean squared difference over the features of [B,T,D], by default over the teacher's variance at that position.

    Normalised, 1 is what a student earns that only knows each position's mean, and no layer or outlier token outweighs
    the others. Differences are clipped to 1e12, where a square would overflow.
    """
    student, teacher = _hidden_pair(student, teacher, mask)
    error = jnp.mean(jnp.square(jnp.clip(student - teacher, -1e12, 1e12)), axis=-1)
    if normalize:
        error = error / (jnp.var(jnp.clip(teacher, -1e12, 1e12), axis=-1) + 1e-6)
    return summed("mse", error, mask)


def hidden_cosine(student, teacher, mask) -> Loss:
    """``1 - cos(student, teacher)`` over the features of [B,T,D], in 0 to 2; a zero vector counts as orthogonal."""
    student, teacher = _hidden_pair(student, teacher, mask)
    return summed("cosine", 1 - jnp.sum(_unit(student) * _unit(teacher), axis=-1), mask)


def _unit(x: Float[Array, "*b D"]) -> Float[Array, "*b D"]:
    largest = jax.lax.stop_gradient(
        jnp.max(jnp.abs(x), axis=-1, keepdims=True)
    )  # a direction does not depend on scale,
    x = x / jnp.where(largest > 0, largest, jnp.ones_like(largest))  # so its gradient is that of the scaled vector
    square = jnp.sum(jnp.square(x), axis=-1, keepdims=True)
    return x * jax.lax.rsqrt(jnp.where(square > 0, square, jnp.ones_like(square)))


def _hidden_pair(student, teacher, mask) -> tuple[Array, Array]:
    check_shape("teacher", teacher, student.shape)
    check_shape("mask", mask, student.shape[:-1])
    dtype = accumulator(student, teacher)
    teacher = jax.lax.stop_gradient(teacher)
    return clear_masked(student.astype(dtype), mask), clear_masked(teacher.astype(dtype), mask)


def hidden_loss(student: Float[Array, "B T D"], teacher: Float[Array, "B T D"], mask: Array, loss: HiddenLoss) -> Loss:
    """What ``loss`` describes, of hidden states."""
    if loss.kind == "mse":
        part = hidden_mse(student, teacher, mask, normalize=loss.normalize)
    else:
        part = hidden_cosine(student, teacher, mask)
    return mix({loss.kind: part}, {loss.kind: loss.weight})
