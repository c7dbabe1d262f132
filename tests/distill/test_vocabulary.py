"""Losses in slices of the vocabulary against whole rows, and what only a large vocabulary shows."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from effarch import axes
from effarch.data.targets import shift
from effarch.distill import chunked, losses
from effarch.distill.divergences import LogitLoss
from effarch.distill.top_k import token_top_k_divergence, top_k
from effarch.distill.vocabulary import default_chunk
from effarch.nn.head import Head
from tests.distill.test_losses import HEADS, HIDDEN, MASK, NAIVE, TARGETS, V, draw, with_gradient
from tests.tolerances import TOL, assert_close

LARGE = 151_936  # of Qwen2 and Qwen3
TOP = 3
IDS = TARGETS.astype(np.int32)


def heads(dtype, bias=True):
    """The student's as a table with a bias and a cap, the teacher's as a kernel with two entries more."""
    offsets = draw(V, seed=3).astype(dtype) if bias else None
    return Head(HEADS["student"].T.astype(dtype), offsets, rows=True, cap=4.0), Head(HEADS["teacher"].astype(dtype))


def states(dtype):
    return HIDDEN["student"].astype(dtype), HIDDEN["teacher"].astype(dtype)


@functools.cache
def compiled(loss, sliced):
    """``((total, Loss), gradients in the student's hidden states and head)``."""

    def fn(hidden, head, teacher, teacher_head, mask):
        if sliced:
            args = hidden, teacher, head, teacher_head, IDS, mask, loss, 2
            return chunked.chunked_logit_loss(*args, vocab_size=V, vocab_chunk=3)
        return losses.logit_loss(head(hidden), teacher_head(teacher), IDS, mask, loss, vocab_size=V)

    return with_gradient(fn, (0, 1))


@pytest.mark.parametrize("kind", ["forward_kl", "skew_reverse_kl", "total_variation"])
def test_slices_equal_the_whole(kind):
    """In float64, values and gradients: slices of 3 of 7 entries overlap, the head has a bias and a cap.

    The other kinds differ in a summand that both paths share.
    """
    loss = LogitLoss(kind=kind, temperature=2.0, weight=0.5, cross_entropy=0.25 if kind == "forward_kl" else 0.0)
    with jax.enable_x64(True):
        args = [x for pair in zip(states(np.float64), heads(np.float64), strict=True) for x in pair]
        found, expected = (compiled(loss, sliced)(*args, MASK) for sliced in (True, False))
        for actual, wanted in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
            assert_close(actual, wanted, TOL.f64, kind)


def test_extreme_logits_and_masks_stay_finite():
    """A vocabulary masked by the head's bias, and NaN where the mask is 0; at a temperature of 0.05, as in whole rows.

    Logits of 1e30 have no digits left for a comparison.
    """
    (hidden, teacher), (head, teacher_head) = states(np.float32), heads(np.float32)
    dirty = [np.where(MASK[..., None] > 0, x, np.nan) for x in (hidden, teacher)]
    bias = np.where(np.arange(V) % 3 == 0, -np.inf, np.where(np.arange(V) == 4, 1e4, 0)).astype(np.float32)
    loss = LogitLoss(kind="jensen_shannon", temperature=0.05, cross_entropy=1.0)
    masked = Head(head.weight, bias, rows=True)
    whole = jax.jit(lambda *a: losses.logit_loss(a[1](a[0]), a[3](a[2])[..., :V], IDS, MASK, loss))
    (found, _), _ = compiled(loss, True)(hidden, masked, teacher, teacher_head, MASK)
    assert_close(found, whole(hidden, masked, teacher, teacher_head).total, TOL.f32_forward)
    for large in (masked, Head(head.weight * np.float32(1e30), 0 * head.bias, rows=True)):
        for mask in (0 * MASK, MASK):
            (_, out), gradients = compiled(loss, True)(dirty[0], large, dirty[1], teacher_head, mask)
            assert all(np.isfinite(x).all() for x in jax.tree.leaves((out, gradients)))
            assert any(np.asarray(x).any() for x in jax.tree.leaves(gradients)) == mask.any() == bool(out.mean())


def test_scores_and_top_k_in_slices_equal_the_whole():
    loss = LogitLoss(kind="reverse_kl", temperature=2.0, cross_entropy=0.5)

    def total(sliced, hidden, head, teacher, teacher_head):
        taught = top_k(teacher_head(teacher)[..., :V], TOP, loss.temperature)
        if sliced is not None:
            return chunked.chunked_top_k_loss(hidden, head, taught, IDS, MASK, loss, 2, vocab_chunk=sliced).total
        nll = losses.cross_entropy(head(hidden), IDS, MASK).total
        return losses.masked_sum(token_top_k_divergence(head(hidden), taught, loss), MASK) + 0.5 * nll

    def scores(hidden, head, targets):
        return [chunked.token_scores(hidden, head, targets, MASK, 2, vocab_chunk=n) for n in (3, None)]

    with jax.enable_x64(True):
        args = [x for pair in zip(states(np.float64), heads(np.float64), strict=True) for x in pair]
        found = [jax.jit(jax.value_and_grad(functools.partial(total, n), (0, 1)))(*args) for n in (None, 3, V)]
        for other in found[1:]:
            for actual, wanted in zip(jax.tree.leaves(other), jax.tree.leaves(found[0]), strict=True):
                assert_close(actual, wanted, TOL.f64)
        run = jax.jit(scores)
        best = np.asarray(args[1](args[0])).argmax(-1).astype(np.int32)
        for targets in (IDS, best, np.where(MASK > 0, np.int32(-100), IDS), np.where(MASK > 0, np.int32(V), IDS)):
            sliced, whole = run(*args[:2], targets)
            if targets is IDS or targets is best:
                assert_close(sliced["nll"], whole["nll"], TOL.f64)
                assert (sliced["correct"] == whole["correct"]).all()
                assert targets is IDS or (np.asarray(sliced["correct"]) == MASK).all()
            else:
                assert (np.isnan(sliced["nll"]) == (MASK > 0)).all()


def packed():
    """A row of two documents and padding: what is supervised, as the objectives see it."""
    batch = {
        "tokens": np.arange(6)[None] * 1000,
        "segment_ids": np.asarray([[1, 1, 1, 2, 2, 0]], np.int32),
        "loss_mask": np.ones((1, 6), np.float32),
    }
    _, targets, mask = shift(batch)
    return targets.astype(np.int32), mask


@pytest.mark.parametrize("kind", NAIVE)
def test_identical_models_are_at_zero_with_a_large_vocabulary(kind):
    """In bfloat16 under jit, packed, at temperatures 0.05 to 20; gradients are finite where all is masked."""
    targets, mask = packed()
    hidden = jnp.asarray(draw(1, 6, 4, seed=5), jnp.bfloat16)
    weight = jnp.asarray(draw(LARGE, 4, seed=6), jnp.bfloat16)

    def at(temperature, entries, student, teacher, mask):
        loss = LogitLoss(kind=kind, temperature=temperature)
        args = student[0], teacher[0], student[1], teacher[1], targets, mask, loss, 3
        return chunked.chunked_logit_loss(*args, vocab_chunk=entries)

    def top(temperature, entries, student, teacher, mask):
        loss = LogitLoss(kind=kind, temperature=temperature)
        taught = top_k(teacher[1](teacher[0]), 8, temperature)
        return chunked.chunked_top_k_loss(*student, taught, targets, mask, loss, 3, vocab_chunk=entries)

    def values(*args):
        paths = [(t, n) for t in (0.05, 20.0) for n in (None, LARGE)]
        sums = [at(*path, *args).mean() for path in paths]
        return sums + [top(*path, *args).mean() for path in paths if kind == "forward_kl"]

    student, teacher = (hidden, Head(weight, rows=True)), (hidden + 0, Head(weight + 0, rows=True))
    found = jax.jit(values)(student, teacher, mask)
    assert np.abs(found).max() <= 1e-6, f"{kind}: {found}"
    if kind == "forward_kl":  # the others' gradients differ in the summand alone
        run = with_gradient(functools.partial(at, 0.05, None))
        for seen in (mask, 0 * mask):
            (_, out), gradients = run(student, teacher, seen)
            assert np.abs(out.mean()) <= 1e-6
            assert all(np.isfinite(np.asarray(x, np.float32)).all() for x in jax.tree.leaves(gradients))


def test_memory_holds_no_row_of_a_large_vocabulary():
    """Compiled temporaries of value and gradients stay below one float32 array [C, V]."""
    positions = 512

    def temporaries(entries):
        def fn(student_head, teacher_head, student, teacher, targets):
            mask, loss = jnp.ones(targets.shape, bool), LogitLoss(cross_entropy=1.0)
            args = student, teacher, student_head, teacher_head, targets, mask, loss, positions
            return chunked.chunked_logit_loss(*args, vocab_chunk=entries).total

        float32 = lambda *shape: jax.ShapeDtypeStruct(shape, jnp.float32)  # noqa: E731
        args = [Head(float32(LARGE, 4), rows=True)] * 2 + [float32(1, 2 * positions, 4)] * 2
        args.append(jax.ShapeDtypeStruct((1, 2 * positions), jnp.int32))
        return jax.jit(jax.value_and_grad(fn, (0, 2))).lower(*args).compile().memory_analysis().temp_size_in_bytes

    assert default_chunk(LARGE) == 8_192 and default_chunk(50_257) is None
    with axes.rules(axes.Rules(jax.make_mesh((2,), ("tensor",)), (("vocab", "tensor"),))):
        assert default_chunk(LARGE) is None
    row = positions * LARGE * 4
    assert temporaries(None) < row < temporaries(LARGE) / 5


def test_errors_name_the_argument():
    (hidden, teacher), (head, teacher_head) = states(np.float32), heads(np.float32)
    with pytest.raises(ValueError, match="head: expected an effarch.nn.head.Head .* got function"):
        chunked.token_scores(hidden, lambda h: h, IDS, MASK, vocab_chunk=3)
    with pytest.raises(ValueError, match="vocab_chunk: expected at least 1 entry, got 0"):
        chunked.token_scores(hidden, head, IDS, MASK, vocab_chunk=0)
    with pytest.raises(ValueError, match=r"vocabulary: expected equal sizes, got 7 \(student\) and 9 \(teacher\)"):
        chunked.token_kl(hidden, teacher, head, teacher_head, MASK, vocab_chunk=3)
