"""Top-k teachers with a tail bucket: against numpy in float64, the bias, and the corners of the tail."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from effarch.distill import losses
from effarch.distill.divergences import LogitLoss
from effarch.distill.top_k import TopK, token_top_k_divergence, top_k
from tests.distill.test_losses import NAIVE, STUDENT, TEACHER, B, T, V, softmax
from tests.tolerances import TOL, assert_close

K = 3


@functools.cache
def compiled(kind, k=K, temperature=1.0):
    """``(bucketed divergence, its gradient in the student, the full divergence)``."""
    loss = LogitLoss(kind=kind, temperature=temperature)

    def fn(student, teacher):
        bucketed = lambda s: token_top_k_divergence(s, top_k(teacher, k, temperature), loss)  # noqa: E731
        value, gradient = jax.vjp(bucketed, student)
        return value, gradient(jnp.ones_like(value))[0], losses.token_divergence(student, teacher, loss)

    return jax.jit(fn)


def naive_buckets(student, teacher, temperature):
    """Logits whose softmax are both models' K + 1 buckets; analytic in the student."""
    q, p = softmax(student / temperature), softmax(teacher / temperature)
    order = np.argsort(-teacher, axis=-1)
    q, p = (np.take_along_axis(x, order, -1) for x in (q, p))
    return [np.log(np.concatenate([x[..., :K], x[..., K:].sum(-1, keepdims=True)], -1)) for x in (q, p)]


@pytest.mark.parametrize("kind", NAIVE)
def test_buckets_match_the_textbook_and_never_exceed_the_whole(kind):
    temperature = 2.0
    value, gradient, whole = compiled(kind, K, temperature)(STUDENT.astype(np.float32), TEACHER.astype(np.float32))
    scale = LogitLoss(kind=kind, temperature=temperature).scale

    def naive(student):
        return NAIVE[kind](*naive_buckets(student, TEACHER, temperature)) * scale

    assert_close(value, naive(STUDENT), TOL.f32_forward)
    assert (np.asarray(value) <= np.asarray(whole) + 1e-6).all() and (np.asarray(value) < 0.99 * whole).any()
    expected = np.empty_like(STUDENT)
    for index in np.ndindex(STUDENT.shape):
        step = STUDENT.astype(complex)
        step[index] += 1e-30j
        expected[index] = naive(step).sum().imag / 1e-30
    assert_close(gradient, expected, TOL.f32_grad)


@pytest.mark.parametrize("kind", ["forward_kl", "reverse_kl"])
def test_k_that_covers_the_vocabulary_is_the_whole(kind):
    value, gradient, whole = compiled(kind, V)(STUDENT.astype(np.float32), TEACHER.astype(np.float32))
    assert_close(value, whole, TOL.f32_forward)
    assert np.isfinite(gradient).all() and np.asarray(gradient).any()


@pytest.mark.parametrize("temperature", [0.05, 1.0, 20.0])
def test_identical_models_are_at_zero_and_empty_tails_cost_nothing(temperature):
    """A tail of 1e-20 cannot be told from 1 - sum: rounding there must not be weighed by its log-probability."""

    def every(student, teacher):
        top = top_k(teacher, K, temperature)
        return {k: token_top_k_divergence(student, top, LogitLoss(kind=k, temperature=temperature)) for k in NAIVE}

    teacher = np.concatenate([TEACHER * 10, STUDENT, np.zeros_like(STUDENT)]).astype(np.float32)
    for kind, value in jax.jit(every)(teacher, teacher + 0).items():
        # Of first order in the rounding of 1 - sum, unlike all others.
        bound = 1e-6 * max(temperature, 1.0) if kind == "total_variation" else 1e-6
        assert np.abs(value).max() <= bound, kind


def test_the_tail_is_one_less_the_sum():
    logits = np.concatenate([TEACHER, TEACHER * 0, TEACHER * 30])
    found = jax.jit(lambda x: (lambda t: (t, t.buckets()))(top_k(x, K)))(logits.astype(np.float32))
    teacher, buckets = jax.tree.map(np.asarray, found)
    assert teacher.indices.dtype == np.int32 and teacher.log_probs.dtype == np.float32
    assert (teacher.indices[: 2 * B] == np.argsort(-logits, -1, kind="stable")[: 2 * B, :, :K]).all()
    p = -np.sort(-softmax(logits), -1)
    assert_close(np.exp(buckets), np.concatenate([p[..., :K], p[..., K:].sum(-1, keepdims=True)], -1), TOL.f32_forward)
    assert np.isfinite(buckets).all()
    quantised = jax.tree.map(np.asarray, jax.jit(lambda x: TopK(x.indices, x.log_probs + 0.01).buckets())(teacher))
    assert np.isfinite(quantised).all()
    assert_close(np.exp(quantised).sum(-1), np.ones(quantised.shape[:-1]), TOL.f32_forward)


def test_errors_name_the_argument():
    x = STUDENT.astype(np.float32)
    with pytest.raises(ValueError, match=r"k: expected 1 to 7 \(the vocabulary\), got 8"):
        top_k(x, V + 1)
    teacher = TopK(np.zeros((B, T, K), np.int32), np.zeros((B, T, K), np.float32))
    with pytest.raises(ValueError, match=r"teacher: expected indices and log_probs of shape \(1, 5, 'K'\)"):
        token_top_k_divergence(x[:1], teacher, LogitLoss())
    with pytest.raises(ValueError, match=r"teacher: expected K of at most 2, got 3"):
        token_top_k_divergence(x[..., :2], teacher, LogitLoss())
