"""Divergences between two distributions over the same outcomes, from their log-probabilities.

Q is the student, P the teacher. Every divergence is a sum over outcomes of a function of ``log q`` and ``log p``
alone, so that it can be summed in slices of the vocabulary (:mod:`effarch.distill.vocabulary`) or over buckets of it
(:mod:`effarch.distill.top_k`):

    forward_kl       KL(P || Q)                                         covers all that the teacher does
    reverse_kl       KL(Q || P)                                         stays within what the teacher does
    jensen_shannon   beta KL(P || M) + (1 - beta) KL(Q || M),  M = beta P + (1 - beta) Q     (GKD, 2306.13649, eq. 1)
    skew_kl          KL(P || alpha P + (1 - alpha) Q)                   (DistiLLM, 2402.03898, eq. 4)
    skew_reverse_kl  KL(Q || alpha Q + (1 - alpha) P)                   (the same, its reverse)
    total_variation  1/2 sum |p - q|

The summand of a KL has ``q - p`` added, which sums to zero: then each is at least 0 and of second order where both
agree, so that what the two normalisations rounded differently does not show.
"""

from typing import Literal, Self

import jax
import jax.numpy as jnp
from pydantic import Field, model_validator

from effarch.config import Config
from effarch.ops.precision import accumulator
from effarch.typing import Array, Float

RANGE = 1e6  # logits of 1e4 at temperature 0.05 differ by 4e5; float32 still resolves 0.06 here


class LogitLoss(Config):
    """A divergence between the next-token distributions of teacher and student, mixed with the text's cross-entropy.

    ``weight * divergence + cross_entropy * nll``; the cross-entropy is taken at temperature 1.
    """

    kind: Literal["forward_kl", "reverse_kl", "jensen_shannon", "skew_kl", "skew_reverse_kl", "total_variation"] = (
        "forward_kl"
    )
    temperature: float = Field(
        1.0,
        gt=0,
        description="divides both models' logits; the divergence is scaled by its square (total_variation: by itself)",
    )
    beta: float = Field(0.5, gt=0, lt=1, description="the teacher's share of the mixture; jensen_shannon only")
    alpha: float = Field(
        0.1, gt=0, lt=1, description="share of the left side in what it is compared with; skew_kl, skew_reverse_kl"
    )
    weight: float = Field(1.0, ge=0, description="factor of the divergence")
    cross_entropy: float = Field(0.0, ge=0, description="factor of the cross-entropy against the text")

    @model_validator(mode="after")
    def _asks_for_something(self) -> Self:
        if self.weight == 0 and self.cross_entropy == 0:
            raise ValueError("weight, cross_entropy: expected at least one above 0, got 0 and 0")
        return self

    @property
    def scale(self) -> float:
        """What keeps the size of the gradient independent of the temperature (Hinton et al., 1503.02531, section 2.1).

        Its square for what is of second order in the difference of the logits, itself for the total variation.
        """
        return self.temperature if self.kind == "total_variation" else self.temperature**2


def bounded(logits: Float[Array, "*b V"]) -> Float[Array, "*b V"]:
    """``logits`` in float32 or better, so far from the dtype's end that differences of two do not overflow."""
    logits = logits.astype(accumulator(logits))
    largest = float(jnp.finfo(logits.dtype).max) / 4
    return jnp.clip(logits, -largest, largest)


def below_largest(logits: Array, largest: Array, temperature: float) -> Array:
    """``(logits - largest) / temperature`` of :func:`bounded` logits, at least ``-RANGE``."""
    return jnp.maximum((logits - largest) / temperature, -RANGE)


def log_probabilities(logits: Float[Array, "*b V"], temperature: float = 1.0) -> Float[Array, "*b V"]:
    """Log-softmax of ``logits / temperature`` in float32 or better: finite for every input but NaN."""
    if not temperature > 0:
        raise ValueError(f"temperature: expected a number above 0, got {temperature}")
    logits = bounded(logits)
    largest = jax.lax.stop_gradient(jnp.max(logits, axis=-1, keepdims=True))
    return jax.nn.log_softmax(below_largest(logits, largest, temperature), axis=-1)


def divergence(log_q: Float[Array, "*b V"], log_p: Float[Array, "*b V"], loss: LogitLoss) -> Float[Array, "*b"]:
    """The divergence named by ``loss.kind``, in nats (total variation: 0 to 1), times ``loss.scale``."""
    return jnp.sum(summands(log_q, log_p, loss), axis=-1) * loss.scale


def summands(log_q: Float[Array, "*b V"], log_p: Float[Array, "*b V"], loss: LogitLoss) -> Float[Array, "*b V"]:
    """What :func:`divergence` sums, before its scale: elementwise."""
    log_ratio = log_q - log_p
    if loss.kind == "forward_kl":
        return _difference(log_q, log_p) - jnp.exp(log_p) * log_ratio
    if loss.kind == "reverse_kl":
        return _difference(log_p, log_q) + jnp.exp(log_q) * log_ratio
    if loss.kind == "skew_kl":
        to_mixture = _log_mixture_ratio(log_ratio, loss.alpha)  # log(M / P)
        return (1 - loss.alpha) * _difference(log_q, log_p) - jnp.exp(log_p) * to_mixture
    if loss.kind == "skew_reverse_kl":
        to_mixture = _log_mixture_ratio(-log_ratio, loss.alpha)  # log(M / Q)
        return (1 - loss.alpha) * _difference(log_p, log_q) - jnp.exp(log_q) * to_mixture
    if loss.kind == "total_variation":
        return jnp.abs(_difference(log_q, log_p)) / 2
    to_mixture = _log_mixture_ratio(log_ratio, loss.beta)  # log(M / P); log(M / Q) is this less log(Q / P)
    terms = -loss.beta * jnp.exp(log_p) * to_mixture
    return terms - (1 - loss.beta) * jnp.exp(log_q) * (to_mixture - log_ratio)


def _difference(log_a: Array, log_b: Array) -> Array:
    """``a - b``, exact to the last digits where the two are close."""
    log_ratio = log_a - log_b
    above = log_ratio > 0
    return jnp.where(above, -jnp.exp(log_a), jnp.exp(log_b)) * jnp.expm1(jnp.where(above, -log_ratio, log_ratio))


def _log_mixture_ratio(log_ratio: Array, share: float) -> Array:
    """``log(share + (1 - share) exp(log_ratio))``: exactly 0 at 0, and without overflow on either side."""
    above = log_ratio > 0
    exponential = jnp.expm1(jnp.where(above, -log_ratio, log_ratio))
    # A share that float32 cannot tell from 0 or 1 would make this log1p(-1).
    least = -1 + float(jnp.finfo(log_ratio.dtype).eps)
    inside = jnp.maximum(jnp.where(above, share, 1 - share) * exponential, least)
    return jnp.where(above, log_ratio, 0.0) + jnp.log1p(inside)
