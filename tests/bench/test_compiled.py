"""Figures of compiled programs: products counted with their loops, exactly; what is sliced counts by the slice."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from effarch.bench import hlo
from effarch.bench.compiled import Counts, counts, memory
from effarch.bench.products import flops

STEPS, ROWS, WIDTH = 24, 8, 16
PRODUCT = 2 * ROWS * WIDTH * WIDTH


def steps(w, xs):
    def step(carry, x):
        carry = jnp.tanh(carry @ w) + x
        return carry, carry

    return jax.lax.scan(step, jnp.zeros((ROWS, WIDTH)), xs)[1]


def loss(w, xs):
    return (steps(w, xs) ** 2).sum()


W, XS = np.zeros((WIDTH, WIDTH), np.float32), np.zeros((STEPS, ROWS, WIDTH), np.float32)


@pytest.fixture(scope="module")
def gradient():
    return jax.jit(jax.grad(loss, argnums=(0, 1))).lower(W, XS).compile()


def test_products_in_loops_count_as_often_as_the_loops_run(gradient):
    """One product forward, two backward, in each of the steps of two loops."""
    found = counts(gradient)
    assert found.total_flops == 3 * STEPS * PRODUCT
    assert found.loops == 2 * STEPS
    assert found.opaque == ()


def test_loops_in_loops_multiply():
    def nested(w, xs):
        return jax.lax.fori_loop(3, 10, lambda _, xs: steps(w, xs), xs)

    found = counts(jax.jit(nested).lower(W, XS).compile())
    assert found.total_flops == 7 * STEPS * PRODUCT
    assert found.loops == 7 + 7 * STEPS


def test_a_loop_of_unknown_length_is_not_counted():
    def until(w, x):
        return jax.lax.while_loop(lambda x: x.sum() < 1, lambda x: x @ w, x)

    found = counts(jax.jit(until).lower(W, XS[0]).compile())
    assert (found.total_flops, found.loops, found.traffic) == (None, None, None)


def test_batches_and_the_larger_branch_count():
    def either(which, a, b):
        return jax.lax.cond(which, lambda a, b: jnp.einsum("bij,bjk->bik", a, b), lambda a, b: a[:, :, :5], a, b)

    shapes = [((), bool), ((3, 4, 6), np.float32), ((3, 6, 5), np.float32)]
    found = counts(jax.jit(either).lower(*(jax.ShapeDtypeStruct(*s) for s in shapes)).compile())
    assert found.total_flops == 2 * 3 * 4 * 6 * 5


def test_memory_is_what_the_compiler_allots(gradient):
    found = memory(gradient)
    assert found.arguments == W.nbytes + XS.nbytes
    assert found.outputs >= W.nbytes + XS.nbytes
    assert found.total == found.arguments + found.outputs + found.temporaries


def test_traffic_of_a_loop_grows_with_its_steps_not_with_their_square():
    """Each step reads one row of all and writes one: whole arrays, counted at every step, would be a square."""

    def traffic(n):
        return counts(jax.jit(steps).lower(W, np.zeros((n, ROWS, WIDTH), np.float32)).compile()).traffic

    assert 0.98 < (traffic(4096) - traffic(2048)) / (2 * (traffic(2048) - traffic(1024))) < 1.02
    assert traffic(4096) > 2 * 4096 * ROWS * WIDTH * 4


def test_traffic_of_a_copy_is_what_is_read_and_written():
    x = np.zeros((512, 512), np.float32)
    assert counts(jax.jit(lambda x: x + 1).lower(x).compile()).traffic == 2 * x.nbytes


def test_traffic_without_loops_is_what_the_compiler_counts():
    def total(q, k, v):
        return (jax.nn.dot_product_attention(q, k, v, is_causal=True) ** 2).sum()

    x = np.zeros((2, 64, 4, 16), np.float32)
    program = jax.jit(jax.grad(total, argnums=(0, 1, 2))).lower(x, x, x).compile()
    expected = program.cost_analysis()["bytes accessed"]
    assert counts(program).traffic == pytest.approx(expected, rel=1e-2)


def test_text_that_says_nothing_gives_nothing():
    assert counts("") == counts("no program") == Counts(None, None, None)


# As the TPU compiler writes: no known_trip_count, products as convolutions, precision beside them.
TPU = """HloModule jit_f, is_scheduled=true

%body (p: (s32[], bf16[8,16], f32[16,16])) -> (s32[], bf16[8,16], f32[16,16]) {
  %p = (s32[]{:T(128)}, bf16[8,16]{1,0:T(8,128)(2,1)S(1)}, f32[16,16]{1,0:T(8,128)}) parameter(0)
  %i = s32[]{:T(128)} get-tuple-element(%p), index=0
  %x = bf16[8,16]{1,0:T(8,128)(2,1)S(1)} get-tuple-element(%p), index=1
  %w = f32[16,16]{1,0:T(8,128)} get-tuple-element(%p), index=2
  %two = s32[]{:T(128)} constant(2)
  %next = s32[]{:T(128)} add(%i, %two)
  %y = bf16[8,16]{1,0:T(8,128)(2,1)S(1)} convolution(%x, %w), dim_labels=bf_io->bf
  %z = f32[16,16]{1,0:T(8,128)} convolution(%w, %w), dim_labels=bf_io->bf, operand_precision={highest,highest}
  ROOT %t = (s32[]{:T(128)}, bf16[8,16]{1,0:T(8,128)(2,1)S(1)}, f32[16,16]{1,0:T(8,128)}) tuple(%next, %y, %z)
}

%condition (p: (s32[], bf16[8,16], f32[16,16])) -> pred[] {
  %bound = s32[]{:T(128)} constant(21)
  %p = (s32[]{:T(128)}, bf16[8,16]{1,0:T(8,128)(2,1)S(1)}, f32[16,16]{1,0:T(8,128)}) parameter(0)
  %i = s32[]{:T(128)} get-tuple-element(%p), index=0
  ROOT %lt = pred[]{:T(512)} compare(%i, %bound), direction=LT
}

ENTRY %main (x: bf16[8,16], w: f32[16,16]) -> bf16[8,16] {
  %x = bf16[8,16]{1,0:T(8,128)(2,1)S(1)} parameter(0)
  %w = f32[16,16]{1,0:T(8,128)} parameter(1)
  %start = s32[]{:T(128)} constant(1)
  %t = (s32[]{:T(128)}, bf16[8,16]{1,0:T(8,128)(2,1)S(1)}, f32[16,16]{1,0:T(8,128)}) tuple(%start, %x, %w)
  %loop = (s32[], bf16[8,16]{1,0}, /*index=2*/f32[16,16]{1,0}) while(%t), condition=%condition, body=%body
  ROOT %out = bf16[8,16]{1,0:T(8,128)(2,1)S(1)} get-tuple-element(%loop), index=1
}
"""


def test_a_loop_is_counted_from_its_condition_and_its_step():
    found = counts(TPU)
    assert found.loops == 10  # 1, 3 ... 19
    assert found.flops == {"bf16": 10 * 2 * 8 * 16 * 16, "f32_highest": 10 * 2 * 16 * 16 * 16}
    scalars, w = 4 + 4 + 4, 16 * 16 * 4  # what is added up, and compared with; x is in the vector memory
    assert found.traffic == 10 * (scalars + w + 3 * w + 4 + 4 + 1)


@pytest.mark.parametrize(
    "window, expected",
    [
        # A batch of 6 products [4, 8] [8, 16], as XLA writes it for TPUs: every output meets one of the six taps.
        ("size=6 stride=5 pad=0_0 lhs_dilate=6", 2 * 4 * 16 * 8 * 6),
        ("size=6 pad=5_5 rhs_reversal=1", 2 * 4 * 16 * 8 * 36),
    ],
)
def test_convolutions_count_where_they_meet(window, expected):
    outputs = 6 if "dilate" in window else 11
    text = f"""HloModule m

ENTRY %main (a: f32[6,4,8], b: f32[6,8,16]) -> f32[{outputs},4,16] {{
  %a = f32[6,4,8]{{2,1,0}} parameter(0)
  %b = f32[6,8,16]{{2,1,0}} parameter(1)
  ROOT %c = f32[{outputs},4,16]{{2,1,0}} convolution(%a, %b), window={{{window}}}, dim_labels=0bf_0io->0bf
}}
"""
    module = hlo.parse(text)
    assert flops(module.entry, module.entry.root) == expected


def test_shapes_are_read_from_their_text():
    text = "(s32[]{:T(128)}, bf16[8,16]{1,0:T(8,128)(2,1)S(1)}, /*index=2*/pred[3], f8e4m3fn[2,2]{1,0}, s4[3])"
    found = hlo.shapes(text)
    assert [s.bytes for s in found] == [4, 256, 3, 4, 2]
    assert [s.space for s in found] == [0, 1, 0, 0, 0]
