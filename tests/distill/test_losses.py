"""The losses against naive numpy in float64 (gradients by complex steps), and at inputs that broke other projects."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from effarch.distill import chunked, hidden, losses
from effarch.distill.hidden import HiddenLoss
from effarch.distill.losses import LogitLoss, Loss
from tests.tolerances import TOL, assert_close

B, T, V = 2, 5, 7
MASK = np.array([[1, 1, 0, 1, 1], [0, 1, 1, 1, 0]], np.float32)


def draw(*shape, seed=0, scale=2.0):
    return np.random.default_rng(seed).normal(size=shape) * scale


STUDENT, TEACHER = draw(B, T, V, seed=1), draw(B, T, V, seed=2)
TARGETS = np.random.default_rng(3).integers(0, V, (B, T))


# The oracle: the textbook formula, analytic in the student, so that a complex step gives its gradient exactly.


def softmax(x):
    e = np.exp(x - x.real.max(-1, keepdims=True))
    return e / e.sum(-1, keepdims=True)


def naive_forward(s, t, temperature=1.0):
    q, p = softmax(s / temperature), softmax(t / temperature)
    return temperature**2 * (p * np.log(p / q)).sum(-1)


def naive_reverse(s, t, temperature=1.0):
    q, p = softmax(s / temperature), softmax(t / temperature)
    return temperature**2 * (q * np.log(q / p)).sum(-1)


def naive_shannon(s, t, beta, temperature=1.0):
    q, p = softmax(s / temperature), softmax(t / temperature)
    m = beta * p + (1 - beta) * q
    return temperature**2 * (beta * p * np.log(p / m) + (1 - beta) * q * np.log(q / m)).sum(-1)


def naive_skew(s, t, alpha=0.1):
    q, p = softmax(s), softmax(t)
    return (p * np.log(p / (alpha * p + (1 - alpha) * q))).sum(-1)


def naive_skew_reverse(s, t, alpha=0.1):
    q, p = softmax(s), softmax(t)
    return (q * np.log(q / (alpha * q + (1 - alpha) * p))).sum(-1)


def naive_total_variation(s, t):
    difference = softmax(s) - softmax(t)
    return (np.where(difference.real < 0, -1, 1) * difference).sum(-1) / 2


NAIVE = {  # by kind, at temperature 1
    "forward_kl": naive_forward,
    "reverse_kl": naive_reverse,
    "jensen_shannon": lambda s, t: naive_shannon(s, t, 0.5),
    "skew_kl": naive_skew,
    "skew_reverse_kl": naive_skew_reverse,
    "total_variation": naive_total_variation,
}


def naive_nll(s, targets=TARGETS):
    return -np.log(np.take_along_axis(softmax(s), targets[..., None], -1))[..., 0]


def naive_mse(s, t, normalize):
    error = ((s - t) ** 2).mean(-1)
    return error / (t.var(-1) + 1e-6) if normalize else error


def naive_cosine(s, t):
    return 1 - (s * t).sum(-1) / np.sqrt((s * s).sum(-1) * (t * t).sum(-1))


CASES = {
    "forward": (losses.forward_kl, naive_forward),
    "forward_hot": (lambda *a: losses.forward_kl(*a, temperature=3.0), lambda s, t: naive_forward(s, t, 3.0)),
    "reverse": (lambda *a: losses.reverse_kl(*a, temperature=0.5), lambda s, t: naive_reverse(s, t, 0.5)),
    "shannon": (lambda *a: losses.jensen_shannon(*a, beta=0.2), lambda s, t: naive_shannon(s, t, 0.2)),
    "shannon_hot": (
        lambda *a: losses.jensen_shannon(*a, beta=0.9, temperature=2.0),
        lambda s, t: naive_shannon(s, t, 0.9, 2.0),
    ),
    "skew": (
        lambda s, t, m: losses.divergence_loss(s, t, m, LogitLoss(kind="skew_kl", alpha=0.3, temperature=2.0)),
        lambda s, t: 4 * naive_skew(s / 2, t / 2, 0.3),
    ),
    "skew_reverse": (
        lambda s, t, m: losses.divergence_loss(s, t, m, LogitLoss(kind="skew_reverse_kl", temperature=0.5)),
        lambda s, t: naive_skew_reverse(2 * s, 2 * t) / 4,
    ),
    "total_variation": (
        lambda s, t, m: losses.divergence_loss(s, t, m, LogitLoss(kind="total_variation", temperature=3.0)),
        lambda s, t: 3 * naive_total_variation(s / 3, t / 3),
    ),
    "nll": (lambda s, t, m: losses.cross_entropy(s, jnp.asarray(TARGETS), m), lambda s, t: naive_nll(s)),
    "mix": (
        lambda s, t, m: losses.logit_loss(
            s, t, jnp.asarray(TARGETS), m, LogitLoss(kind="reverse_kl", weight=0.7, cross_entropy=0.3)
        ),
        lambda s, t: 0.7 * naive_reverse(s, t) + 0.3 * naive_nll(s),
    ),
    "mse": (lambda *a: hidden.hidden_mse(*a, normalize=False), lambda s, t: naive_mse(s, t, False)),
    "mse_normalized": (lambda *a: hidden.hidden_loss(*a, HiddenLoss()), lambda s, t: naive_mse(s, t, True)),
    "cosine": (
        lambda *a: hidden.hidden_loss(*a, HiddenLoss(kind="cosine", weight=2.0)),
        lambda s, t: 2 * naive_cosine(s, t),
    ),
}
LOGIT_KINDS = [LogitLoss(kind=kind, cross_entropy=0.5) for kind in NAIVE]


def oracle(naive, student=STUDENT, teacher=TEACHER, mask=MASK):
    """The masked sum and its gradient in the student."""
    gradient = np.empty_like(student)
    for index in np.ndindex(student.shape):
        step = student.astype(complex)
        step[index] += 1e-30j
        gradient[index] = (naive(step, teacher) * mask).sum().imag / 1e-30
    return (naive(student, teacher) * mask).sum(), gradient


def with_gradient(loss, argnums=0):
    """``((total, Loss), gradient in the arguments)``, compiled."""
    return jax.jit(
        jax.value_and_grad(lambda *a: (lambda out: (out.total, out))(loss(*a)), argnums=argnums, has_aux=True)
    )


@functools.cache
def compiled(name):
    return with_gradient(CASES[name][0], argnums=(0, 1))


@pytest.mark.parametrize("name", CASES)
def test_loss_and_gradient_match_the_textbook(name):
    total, gradient = oracle(CASES[name][1])
    for dtype, forward, grad in ((np.float32, TOL.f32_forward, TOL.f32_grad), (np.float64, TOL.f64, TOL.f64)):
        with jax.enable_x64(dtype is np.float64):
            (_, out), (actual, _) = compiled(name)(STUDENT.astype(dtype), TEACHER.astype(dtype), MASK)
            assert out.total.dtype == dtype and float(out.weight) == MASK.sum()
            assert_close(out.total, total, forward, f"{name} value")
            assert_close(actual, gradient, grad, f"{name} gradient")


@pytest.mark.parametrize("name", ["shannon", "nll", "mse_normalized", "cosine"])
def test_bfloat16_inputs_are_computed_in_float32(name):
    student, teacher = jnp.asarray(STUDENT, jnp.bfloat16), jnp.asarray(TEACHER, jnp.float32)
    (_, out), _ = compiled(name)(student, teacher, MASK)
    (_, expected), _ = compiled(name)(student.astype(jnp.float32), teacher, MASK)
    assert out.total.dtype == jnp.float32
    assert_close(out.total, expected.total, TOL.f32_forward)


@pytest.mark.parametrize("name", CASES)
def test_masks_and_micro_batches(name):
    """NaN under the mask reaches nothing, an empty mask gives 0, the teacher gets no gradient, the rows add up."""
    fn = compiled(name)
    weights = MASK * np.float32(0.5)
    dirty = [np.where(MASK[..., None] > 0, x, np.nan).astype(np.float32) for x in (STUDENT, TEACHER)]
    (_, whole), (gradient, teacher_gradient) = fn(STUDENT.astype(np.float32), TEACHER.astype(np.float32), weights)
    (_, masked), (masked_gradient, _) = fn(*dirty, weights)
    assert masked == whole and whole.weight == weights.sum()
    assert np.array_equal(masked_gradient, gradient) and not gradient[MASK == 0].any() and gradient[MASK > 0].any()
    assert not np.asarray(teacher_gradient).any()

    (_, empty), (gradient, _) = fn(*dirty, 0 * weights)
    assert empty.total == empty.weight == empty.mean() == 0 and not np.asarray(gradient).any()

    rows = [fn(*dirty, np.where(np.arange(B)[:, None] == b, weights, 0))[0][1] for b in range(B)]
    total = jax.tree.map(jnp.add, *rows)
    for actual, expected in zip(jax.tree.leaves(total), jax.tree.leaves(whole), strict=True):
        assert_close(actual, expected, TOL.f32_forward)


def extreme_logits():
    """Pairs of rows: masked vocabulary in one model, in both; nothing allowed; huge; infinite; masks of -3e38."""
    rng = np.random.default_rng(4)
    plain = rng.normal(size=V)
    some, others = plain.copy(), rng.normal(size=V)
    some[:3] = -np.inf
    others[2:5] = -np.inf
    hugest, lowest = plain * 1e4, np.where(np.arange(V) < 3, np.finfo(np.float32).min, plain)
    one = np.where(np.arange(V) == 1, np.inf, plain)
    values = [plain, some, others, np.full(V, -np.inf), hugest, -hugest, lowest, one, plain * 1e38, np.full(V, 1e4)]
    pairs = [(s, t) for s in values for t in values]
    student, teacher = (np.stack(x).astype(np.float32)[None] for x in zip(*pairs, strict=True))
    return student, teacher


@pytest.mark.parametrize("loss", LOGIT_KINDS, ids=lambda loss: loss.kind)
def test_extreme_logits_stay_finite(loss):
    student, teacher = extreme_logits()
    targets, mask = np.zeros(student.shape[:2], np.int32), np.ones(student.shape[:2], bool)
    for dtype, temperature in ((jnp.float32, 1.0), (jnp.bfloat16, 0.05)):
        config = loss.replace(temperature=temperature)
        fn = with_gradient(lambda s, t, config=config: losses.logit_loss(s, t, targets, mask, config))
        (_, out), gradient = fn(jnp.asarray(student, dtype), jnp.asarray(teacher, dtype))
        gradient = np.asarray(gradient, np.float32)
        assert np.isfinite([out.total, *out.metrics.values()]).all() and out.total >= 0
        assert np.isfinite(gradient).all() and not gradient[np.isneginf(student)].any()


def test_a_vocabulary_masked_in_both_models_costs_nothing():
    student, teacher = STUDENT.astype(np.float32), TEACHER.astype(np.float32)
    masked = [np.concatenate([x, np.full((B, T, 2), -np.inf, np.float32)], -1) for x in (student, teacher)]
    for fn in (losses.forward_kl, losses.reverse_kl, losses.jensen_shannon):
        actual, expected = jax.jit(lambda a, b, fn=fn: (fn(*a, MASK).total, fn(*b, MASK).total))(
            masked, (student, teacher)
        )
        assert_close(actual, expected, TOL.f32_forward)


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16], ids=["float32", "bfloat16"])
@pytest.mark.parametrize("loss", LOGIT_KINDS, ids=lambda loss: loss.kind)
def test_identical_models_are_at_zero(loss, dtype):
    """0.0248 in another project: the two log-softmaxes rounded differently in bfloat16."""
    loss = loss.replace(cross_entropy=0.0)
    states, head = jnp.asarray(draw(2, 8, 16, seed=5), dtype), jnp.asarray(draw(16, 300, seed=6), dtype)
    targets, mask = np.zeros((2, 8), np.int32), np.ones((2, 8), bool)

    def fn(student, teacher):
        return chunked.chunked_logit_loss(
            student, teacher, lambda h: h @ head, lambda h: h @ head, targets, mask, loss, 3
        )

    (_, out), gradient = with_gradient(fn)(states, states + 0)
    assert abs(out.mean()) <= 1e-7
    assert np.abs(np.asarray(gradient, np.float32)).max() <= 1e-5


def test_padded_vocabularies_are_cropped_only_when_told():
    student, teacher = (
        STUDENT.astype(np.float32),
        np.pad(TEACHER.astype(np.float32), ((0, 0), (0, 0), (0, 3)), constant_values=9),
    )
    whole = jax.jit(lambda s, t: losses.forward_kl(s, t, MASK).total)
    cropped = jax.jit(lambda s, t, size: losses.forward_kl(s, t, MASK, vocab_size=size).total, static_argnums=2)
    assert cropped(student, teacher, V) == whole(student, teacher[..., :V]) != cropped(student, teacher, V - 2)
    with pytest.raises(ValueError, match=r"vocabulary: .* 7 \(student\) and 10 \(teacher\).* vocab_size"):
        losses.forward_kl(student, teacher, MASK)
    with pytest.raises(ValueError, match=r"vocab_size: expected 1 to 7 .* got 8"):
        losses.forward_kl(student, teacher, MASK, vocab_size=8)


def test_errors_name_the_argument():
    x = STUDENT.astype(np.float32)
    with pytest.raises(ValueError, match=r"mask: expected shape \(2, 5\), got \(2, 4\)"):
        losses.forward_kl(x, x, MASK[:, :4])
    with pytest.raises(ValueError, match=r"teacher: expected shape \(2, 5, 7\), got \(1, 5, 7\)"):
        losses.reverse_kl(x, x[:1], MASK)
    with pytest.raises(ValueError, match=r"targets: expected shape"):
        losses.cross_entropy(x, TARGETS[:1], MASK)
    with pytest.raises(ValueError, match=r"teacher: expected shape"):
        hidden.hidden_mse(x, x[..., :3], MASK)
    with pytest.raises(ValueError, match="temperature"):
        losses.forward_kl(x, x, MASK, temperature=0.0)
    with pytest.raises(ValueError, match="beta"):
        losses.jensen_shannon(x, x, MASK, beta=1.0)
    with pytest.raises(ValueError, match="weight, cross_entropy: expected at least one"):
        LogitLoss(weight=0)
    with pytest.raises(ValueError, match=r"weights: expected one for each of \['a'\], got \['b'\]"):
        losses.mix({"a": losses.forward_kl(x, x, MASK)}, {"b": 1.0})
    with pytest.raises(ValueError, match="chunk: expected at least 1"):
        chunked.token_scores(x, lambda h: h, TARGETS, MASK, 0)
    with pytest.raises(ValueError, match=r"targets: expected shape \(2, 5\), got \(2, 4\)"):
        chunked.token_scores(x, lambda h: h, TARGETS[:, :4], MASK)


def test_a_target_outside_the_vocabulary_is_loud_unless_masked():
    total = jax.jit(lambda targets: losses.cross_entropy(jnp.asarray(STUDENT, jnp.float32), targets, MASK).total)
    for wrong in (-100, -1, V):
        assert total(np.where(MASK > 0, TARGETS, wrong)) == total(TARGETS)
        assert np.isnan(total(np.full_like(TARGETS, wrong)))


def test_degenerate_hidden_states_stay_finite():
    values = [np.zeros(4), np.full(4, 3.0), np.array([0, 0, 1e-30, 0]), np.full(4, 1e30), np.array([1, -2, 3e18, 4.0])]
    pairs = [(s, t) for s in values for t in values]
    student, teacher = (np.stack(x).astype(np.float32)[None] for x in zip(*pairs, strict=True))
    for loss in (HiddenLoss(), HiddenLoss(normalize=False), HiddenLoss(kind="cosine")):
        fn = with_gradient(lambda s, t, loss=loss: hidden.hidden_loss(s, t, np.ones((1, 25), bool), loss))
        (_, out), gradient = fn(student, teacher)
        assert np.isfinite(out.total) and np.isfinite(gradient).all()

    directions = jax.jit(
        lambda scale: hidden.hidden_cosine(scale * STUDENT.astype(np.float32), teacher_rows, MASK).total
    )
    teacher_rows = TEACHER.astype(np.float32)
    for scale in (1e-30, 1e30):
        assert_close(directions(np.float32(scale)), directions(np.float32(1)), TOL.f32_forward)


# Chunks


D = 3
HIDDEN = {"student": draw(B, T, D, seed=7).astype(np.float32), "teacher": draw(B, T, D + 1, seed=8).astype(np.float32)}
HEADS = {"student": draw(D, V, seed=14).astype(np.float32), "teacher": draw(D + 1, V + 2, seed=10).astype(np.float32)}


def from_chunks(student_head, student_hidden, teacher_hidden, mask, loss, chunk):
    return chunked.chunked_logit_loss(
        student_hidden,
        teacher_hidden,
        lambda h: h @ student_head,
        lambda h: h @ HEADS["teacher"],
        TARGETS,
        mask,
        loss,
        chunk,
        vocab_size=V,
    )


def test_chunks_equal_the_whole():
    """Values, every metric, and the gradients of the hidden states and of the head that the scan closes over."""
    loss = LogitLoss(kind="jensen_shannon", temperature=2.0, weight=0.5, cross_entropy=0.25)

    def whole(head, student, teacher):
        return losses.logit_loss(student @ head, teacher @ HEADS["teacher"], TARGETS, MASK, loss, vocab_size=V)

    args = HEADS["student"], HIDDEN["student"], HIDDEN["teacher"]
    (_, expected), expected_gradients = with_gradient(whole, (0, 1))(*args)
    for chunk in (2, 64):
        fn = with_gradient(lambda *a, c=chunk: from_chunks(*a, MASK, loss, c), (0, 1, 2))
        (_, out), gradients = fn(*args)
        assert out.weight == expected.weight and out.metrics.keys() == expected.metrics.keys()
        for actual, wanted in zip(jax.tree.leaves(out), jax.tree.leaves(expected), strict=True):
            assert_close(actual, wanted, TOL.f32_forward)
        for actual, wanted in zip(gradients[:2], expected_gradients, strict=True):
            assert_close(actual, wanted, TOL.f32_grad)
        assert not np.asarray(gradients[2]).any()


def test_chunks_keep_what_is_masked_out():
    dirty = {k: np.where(MASK[..., None] > 0, x, np.nan) for k, x in HIDDEN.items()}
    loss = LogitLoss(cross_entropy=1.0)
    fn = with_gradient(lambda *a: from_chunks(*a, loss, 2), (0, 1))
    for mask in (0 * MASK, MASK):
        (_, out), gradients = fn(HEADS["student"], dirty["student"], dirty["teacher"], mask)
        assert np.isfinite(out.total) and all(np.isfinite(g).all() for g in gradients)
        assert any(np.asarray(g).any() for g in gradients) == mask.any() == bool(out.mean())


def test_token_scores():
    logits = HIDDEN["student"].astype(np.float64) @ HEADS["student"]
    right = np.arange(T)[None] % 3 == np.arange(B)[:, None]
    targets = np.where(MASK > 0, np.where(right, logits.argmax(-1), (logits.argmax(-1) + 1) % V), -100)
    nll = naive_nll(logits, np.where(MASK > 0, targets, 0)) * MASK
    scores = chunked.token_scores(HIDDEN["student"], lambda h: h @ HEADS["student"], targets, MASK, 2)
    assert_close(scores["nll"], nll, TOL.f32_forward)
    assert (scores["correct"] == right * MASK).all() and (scores["best"] == logits.argmax(-1) * (MASK > 0)).all()

    weights = MASK * np.float32(0.5)
    loss = chunked.chunked_cross_entropy(HIDDEN["student"], lambda h: h @ HEADS["student"], targets, weights, 2)
    assert isinstance(loss, Loss) and loss.weight == weights.sum()
    assert_close(loss.total, nll.sum() / 2, TOL.f32_forward)
    assert (
        loss.metrics["correct"] == (scores["correct"] * weights).sum() and loss.metrics["cross_entropy"] == loss.total
    )

    teacher_logits = (HIDDEN["teacher"].astype(np.float64) @ HEADS["teacher"])[..., :V]
    heads = [lambda h, w=HEADS[k]: h @ w for k in ("student", "teacher")]
    kl = chunked.token_kl(HIDDEN["student"], HIDDEN["teacher"], *heads, MASK, 2, vocab_size=V)
    assert_close(kl, naive_forward(logits, teacher_logits) * MASK, TOL.f32_forward)
    assert_close(losses.bits(1.0), np.log2(np.e), TOL.f64)


def test_memory_does_not_hold_all_logits():
    """Compiled temporaries of value and gradients: [B,T,vocab] would add 32 MB where T or the vocabulary doubles."""

    def temporaries(length, vocab, chunk=64):
        def fn(student_head, teacher_head, student, teacher, targets):
            heads = (lambda h: h @ student_head), (lambda h: h @ teacher_head)
            mask = jnp.ones(targets.shape, bool)
            return chunked.chunked_logit_loss(
                student, teacher, *heads, targets, mask, LogitLoss(cross_entropy=1.0), chunk
            ).total

        float32 = lambda *shape: jax.ShapeDtypeStruct(shape, jnp.float32)  # noqa: E731
        args = [float32(4, vocab)] * 2 + [float32(2, length, 4)] * 2 + [jax.ShapeDtypeStruct((2, length), jnp.int32)]
        compiled = jax.jit(jax.value_and_grad(fn, argnums=(0, 2))).lower(*args).compile()
        return compiled.memory_analysis().temp_size_in_bytes

    base, chunk_bytes = temporaries(4096, 1024), 2 * 64 * 1024 * 4
    assert base < 12 * chunk_bytes
    assert temporaries(4096, 2048) - base < 12 * chunk_bytes
    assert temporaries(8192, 1024) - base < chunk_bytes
