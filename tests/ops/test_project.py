"""The product of activations and a kernel: values and gradients are those of jax's own."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from effarch.ops.project import project
from tests.tolerances import TOL, assert_close

SHAPES = {
    "a kernel of two axes": ((2, 5, 6), (6, 7), 1),
    "heads are made": ((2, 5, 6), (6, 3, 4), 1),
    "heads are summed over": ((2, 5, 3, 4), (3, 4, 6), 2),
    "writes and heads": ((2, 5, 6), (6, 2, 3, 4), 1),
    "one row": ((5, 6), (6, 7), 1),
    "no tokens' axis": ((6,), (6, 7), 1),
}


@pytest.mark.parametrize(("x", "kernel", "contracted"), SHAPES.values(), ids=SHAPES)
def test_as_jax_derives_it(x, kernel, contracted):
    rng = np.random.default_rng(0)
    x, kernel = (jnp.asarray(rng.normal(size=shape), jnp.float32) for shape in (x, kernel))

    @partial(jax.jit, static_argnums=0)
    def both(f, x, kernel):
        y, back = jax.vjp(f, x, kernel)
        return y, back(jnp.cos(y))

    y, gradients = both(partial(project, contracted=contracted), x, kernel)
    expected, others = both(partial(jnp.tensordot, axes=contracted), x, kernel)
    assert_close(y, expected, TOL.f32_forward)
    for one, other in zip(gradients, others, strict=True):
        assert one.shape == other.shape
        assert_close(one, other, TOL.f32_grad)


def test_no_gradient_is_transposed_on_the_way():
    x, kernel = jax.ShapeDtypeStruct((2, 5, 6), jnp.bfloat16), jax.ShapeDtypeStruct((6, 3, 4), jnp.bfloat16)

    def loss(multiply, x, kernel):
        return multiply(x, kernel, 1).astype(jnp.float32).sum()

    program = {f: str(jax.make_jaxpr(jax.grad(partial(loss, f), (0, 1)))(x, kernel)) for f in (project, jnp.tensordot)}
    assert "transpose[" not in program[project] and "transpose[" in program[jnp.tensordot]
