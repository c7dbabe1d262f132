"""The elementwise scan against a loop over time in float64, values and gradients."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from effarch.ops.scan import linear_scan
from tests.ops.recurrence_cases import SWEEP, random_segments
from tests.tolerances import TOL, assert_close


def loop(log_decay, x, state, run, carried):
    def step(h, token):
        g, x_t, run_t, carried_t = token
        kept = jnp.where(((run_t > 0) & (run_t != carried_t))[:, None], 0.0, h)
        h = jnp.where((run_t > 0)[:, None], jnp.exp(g) * kept + x_t, h)
        return h, h

    by_time = [jnp.moveaxis(a, 1, 0) for a in (log_decay, x, run, carried)]
    state, h = jax.lax.scan(step, state, tuple(by_time))
    return jnp.moveaxis(h, 0, 1), state


@pytest.mark.parametrize("seed", range(3))
def test_scan_is_the_loop(seed):
    from effarch.ops.segments import as_segments

    rng = np.random.default_rng(seed)
    log_decay = rng.choice(SWEEP, size=(2, 150, 6)) * rng.uniform(size=(2, 150, 6))
    x, state = rng.normal(size=(2, 150, 6)), rng.normal(size=(2, 6))
    ids = random_segments(rng, 2, 150)
    segments = as_segments(ids)

    def fast(g, x, state):
        return linear_scan((g, x), state=state, segment_ids=ids)

    values, pull = jax.vjp(jax.jit(fast), *(jnp.asarray(a, jnp.float32) for a in (log_decay, x, state)))
    cotangents = jax.tree.map(lambda y: jnp.asarray(rng.normal(size=y.shape), jnp.float32), values)
    gradients = pull(cotangents)
    with jax.enable_x64(True):
        exact = [jnp.asarray(a, jnp.float64) for a in (log_decay, x, state)]
        true, pull = jax.vjp(lambda *a: loop(*a, segments.run, segments.carried_run), *exact)
        true_gradients = pull(jax.tree.map(lambda y: jnp.asarray(np.asarray(y), jnp.float64), cotangents))
    for a, b in zip(values, true, strict=True):
        assert_close(a, b, TOL.f32_forward)
    for a, b in zip(gradients, true_gradients, strict=True):
        assert_close(a, b, TOL.f32_grad)


def test_gates_and_outputs_are_formed_in_chunks():
    """A wide state read out inside chunks: the [T, D, N] states never exist, forward or backward."""

    def run(x, c):
        def gates(inputs, _):
            return -jnp.ones((1, 64, 32, 16)), inputs[0][..., None] * jnp.ones((1, 1, 1, 16))

        def read(h, inputs):
            return (h * inputs[1][:, :, None]).sum(-1)

        return linear_scan((x, c), state=jnp.zeros((1, 32, 16)), gates=gates, read=read)[0].sum()

    shapes = jax.ShapeDtypeStruct((1, 8192, 32), jnp.float32), jax.ShapeDtypeStruct((1, 8192, 16), jnp.float32)
    memory = jax.jit(jax.grad(run, argnums=(0, 1))).lower(*shapes).compile().memory_analysis()
    assert memory.temp_size_in_bytes < 8192 * 32 * 16 * 4 / 2


def test_mismatched_inputs_are_refused():
    with pytest.raises(ValueError, match="inputs: expected arrays"):
        linear_scan((jnp.ones((2, 5, 3)), jnp.ones((2, 4, 3))), state=jnp.ones((2, 3)))
