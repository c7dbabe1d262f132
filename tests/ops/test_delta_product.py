"""Several delta steps per token against the definition, token by token and step by step in float64."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from effarch.ops.delta_product import delta_product
from effarch.ops.recurrence import Delta
from effarch.ops.segments import as_segments, compact, repeat, spread
from tests.ops.recurrence_cases import log_decays, random_segments, unit
from tests.tolerances import TOL, assert_close

B, T, N, H, K, V = 2, 37, 3, 2, 8, 6


def loop(q, k, v, beta, log_decay, state, run, carried):
    """The state decays once, then is corrected n times, then is read."""

    def token(s, x):
        q, k, v, beta, log_decay, run, carried = x
        real, fresh = (run > 0)[:, None, None, None], (run != carried)[:, None, None, None]
        after = jnp.where(fresh, 0.0, s) * jnp.exp(log_decay)[..., None]
        for step in range(N):
            seen = jnp.einsum("bhkv,bhk->bhv", after, k[:, step])
            write = beta[:, step, :, None] * (v[:, step] - seen)
            after = after + k[:, step, ..., None] * write[..., None, :]
        s = jnp.where(real, after, s)
        return s, jnp.where(real[..., 0], jnp.einsum("bhkv,bhk->bhv", s, q), 0.0)

    state, o = jax.lax.scan(token, state, [jnp.moveaxis(x, 1, 0) for x in (q, k, v, beta, log_decay, run, carried)])
    return jnp.moveaxis(o, 0, 1), state


def draw(rng, channels):
    shape = (B, T, H, K) if channels else (B, T, H)
    decay = log_decays(rng, shape)
    return (
        rng.normal(size=(B, T, H, K)),
        unit(rng.normal(size=(B, T, N, H, K))),
        rng.normal(size=(B, T, N, H, V)),
        2 * rng.uniform(size=(B, T, N, H)),
        decay,
        rng.normal(size=(B, H, K, V)),
    )


@pytest.mark.parametrize("form", ["parallel", "chunkwise", "recurrent"])
@pytest.mark.parametrize("channels", [False, True])
def test_steps_are_the_loop(form, channels):
    """Outputs, final state, every gradient; documents, padding and a carried state."""
    rng = np.random.default_rng(5)
    arrays, ids = draw(rng, channels), random_segments(np.random.default_rng(3), B, T)
    segments = as_segments(ids)

    @jax.jit
    def ours(q, k, v, beta, log_decay, state):
        return delta_product(q, k, v, transition=Delta(beta, log_decay), state=state, segment_ids=ids, form=form)

    values, pull = jax.vjp(ours, *(jnp.asarray(x, jnp.float32) for x in arrays))
    cotangents = jax.tree.map(lambda y: jnp.asarray(rng.normal(size=y.shape), jnp.float32), values)
    gradients = pull(cotangents)
    with jax.enable_x64(True):

        @jax.jit
        def exact(q, k, v, beta, log_decay, state):
            log_decay = log_decay if channels else log_decay[..., None]
            return loop(q, k, v, beta, log_decay, state, segments.run, segments.carried_run)

        true, pull = jax.vjp(exact, *(jnp.asarray(np.asarray(x, np.float32), jnp.float64) for x in arrays))
        true_gradients = pull(jax.tree.map(lambda y: jnp.asarray(np.asarray(y), jnp.float64), cotangents))
    for a, b in zip(values, true, strict=True):
        assert_close(a, b, TOL.f32_forward)
    for a, b in zip(gradients, true_gradients, strict=True):
        assert_close(a, b, TOL.f32_grad)


def test_repeated_segments_are_those_of_the_repeated_row():
    ids = random_segments(np.random.default_rng(2), 4, 20)
    segments = repeat(as_segments(ids), N)
    again = as_segments(jnp.repeat(ids, N, axis=1))
    for name in ("run", "position", "order", "inverse"):
        assert (getattr(segments, name) == getattr(again, name)).all(), name
    x = jnp.arange(4 * 20 * N).reshape(4, 20 * N)
    assert (spread(compact(x, segments), segments) == x).all()


def test_shapes_are_checked():
    q, k, v, beta, log_decay, _ = (jnp.asarray(x) for x in draw(np.random.default_rng(0), False))
    with pytest.raises(ValueError, match="k, v, beta: expected shapes"):
        delta_product(q, k, v[:, :, :2], transition=Delta(beta, log_decay))
