"""Which layers get their attention back: the one that is broken, first."""

from functools import lru_cache

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from effarch.distill.select import measurements, restored_hidden, select_layers
from effarch.distill.transfer import StudentConfig, student_config, transfer
from effarch.mixers.sliding_window import SlidingWindow
from effarch.models.lm import make_lm
from effarch.models.stack import Stack
from tests.models import tiny
from tests.tolerances import TOL, assert_close

B, T, L = 4, 24, 5
TEACHER = tiny.config("softmax_attention", layers=L)
BATCH = {
    "tokens": np.asarray(tiny.tokens(B, T)),
    "segment_ids": np.asarray([[1] * 15 + [2] * 9, [1] * 24, [0] * 4 + [1] * 20, [1] * 20 + [0] * 4], np.int32),
}
BATCH["loss_mask"] = (BATCH["segment_ids"] > 0).astype(np.float32)
WINDOW = StudentConfig(mixer=SlidingWindow(window=T, sinks=0))  # sees as much as its teacher


@lru_cache
def windowed():
    """``(teacher, student)``: a student that is its teacher, nearly."""
    teacher = tiny.model(TEACHER)
    wanted = student_config(TEACHER, WINDOW)
    return teacher, jax.jit(lambda t: transfer(t, make_lm(wanted)), compiler_options=tiny.FAST)(teacher)


def broken(*factors: float):
    """The student with the outputs of every layer's mixer scaled."""
    _, student = windowed()
    layers = nnx.merge(*nnx.split(student)).stack.layers()
    for layer, factor in zip(layers, factors, strict=True):
        kernel = layer.mixer.qkv.o.kernel
        kernel[...] = jnp.asarray(np.asarray(kernel[...]) * factor)
    copy = nnx.merge(*nnx.split(student))
    copy.stack = Stack.of(student.stack.layout, layers)
    return copy


def test_the_broken_layer_is_chosen_first():
    teacher, _ = windowed()
    done = []
    found = select_layers(teacher, broken(1, 1, 1, -1, 1), [BATCH], 1, advance=done.append)
    assert found.kept == (3,) and found.converted > 1e-2
    assert found.restored[3] < 1e-6 and found.after == (found.restored[3],)
    others = [kl for i, kl in enumerate(found.restored) if i != 3]
    assert min(others) > 0.2 * found.converted
    assert done == list(range(1, measurements(L, 1, "single") + 1))


@pytest.mark.parametrize("method", ["single", "greedy"])
def test_two_broken_layers(method):
    teacher, _ = windowed()
    done = []
    found = select_layers(teacher, broken(1, -1, 1, 1, 0.2), [BATCH, BATCH], 2, method, done.append)
    assert len(done) == measurements(L, 2, method) and found.after[0] == min(found.restored) < found.converted
    assert found.kept[0] == int(np.argmin(found.restored))
    if method == "greedy":  # alone, mending the weaker of two may even harm
        assert set(found.kept) == {1, 4} and found.after[1] < 1e-6
    else:
        assert found.restored[found.kept[1]] == sorted(found.restored)[1]


def test_what_is_restored_is_the_hybrid():
    """The same layers in a model that was put together from them."""
    wanted = student_config(TEACHER, StudentConfig(mixer="retnet", keep=(0, 2)))
    plain = student_config(TEACHER, StudentConfig(mixer="retnet"))
    flags = jnp.asarray([i in (0, 2) for i in range(L)])

    def both(teacher):
        student, hybrid = transfer(teacher, make_lm(plain)), transfer(teacher, make_lm(wanted))
        pairs = zip(teacher.stack.layers(), student.stack.layers(), strict=True)
        hybrid.stack = Stack.of(hybrid.stack.layout, [t if i in (0, 2) else s for i, (t, s) in enumerate(pairs)])
        tokens, ids = jnp.asarray(BATCH["tokens"]), jnp.asarray(BATCH["segment_ids"])
        return restored_hidden(teacher, student, tokens, ids, flags), hybrid.hidden(tokens, segment_ids=ids).hidden

    assert_close(*jax.jit(both, compiler_options=tiny.FAST)(tiny.model(TEACHER)), TOL.f32_forward)


@pytest.mark.slow
def test_values_that_cross_layers():
    teacher = tiny.model(TEACHER)
    wanted = student_config(TEACHER, StudentConfig(mixer="rwkv7"))
    student = jax.jit(lambda t: transfer(t, make_lm(wanted)), compiler_options=tiny.FAST)(teacher)
    found = select_layers(teacher, student, [BATCH], L, "greedy")
    assert sorted(found.kept) == list(range(L)) and found.after[-1] < 1e-6


def test_refusals():
    teacher, student = windowed()
    for keep in (0, L + 1):
        with pytest.raises(ValueError, match=f"keep: expected 1 to 5 layers, got {keep}"):
            select_layers(teacher, student, [BATCH], keep)
    with pytest.raises(ValueError, match="student: expected every layer to be converted, layer 0 has"):
        select_layers(teacher, teacher, [BATCH], 1)


def test_layers_to_keep_are_numbers_of_layers():
    """A list of layers in place of a repeated pattern, or on top of one."""
    names = lambda student: [student_config(TEACHER, student).block(i).mixer.type_name for i in range(L)]  # noqa: E731
    r, a = "retnet", "softmax_attention"
    assert names(StudentConfig(mixer=r, keep=(1, 4))) == [r, a, r, r, a]
    assert names(StudentConfig(mixer=r, pattern=("mixer", "teacher"), keep=(0,))) == [a, a, r, a, r]
    with pytest.raises(ValueError, match="keep: expected layers 0 to 4, got 5"):
        student_config(TEACHER, StudentConfig(mixer=r, keep=(2, 5)))
