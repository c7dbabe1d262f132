"""minGRU against the parallel scan of the paper (appendix B): in logarithms, all candidates positive."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from effarch.mixers import Context, LayerInfo
from effarch.mixers.mingru import MinGRU
from tests.tolerances import TOL, assert_close

T, D, CHANNELS = 90, 6, 8  # more than one chunk


def softplus(x):
    return np.logaddexp(0, x)


def in_logarithms(z, c):
    """``h_t = exp(a_t + logcumsumexp(log(z c) - a))``, a the running sum of log(1 - z); from h = 0."""
    log_keep, log_z = -softplus(z), -softplus(-z)
    log_candidate = np.where(c >= 0, np.log(np.maximum(c, 0) + 0.5), -softplus(-c))
    a = np.cumsum(log_keep, axis=1)
    return np.exp(a + np.logaddexp.accumulate(log_z + log_candidate - a, axis=1))


def one_by_one(z, c):
    """The form without logarithms, candidates of any sign."""
    h, states = np.zeros_like(z[:, 0]), []
    for t in range(z.shape[1]):
        gate = 1 / (1 + np.exp(-z[:, t]))
        h = (1 - gate) * h + gate * c[:, t]
        states.append(h)
    return np.stack(states, axis=1)


@pytest.mark.parametrize("positive, scan", [(True, in_logarithms), (False, one_by_one)])
def test_states_are_those_of_the_paper(positive, scan):
    config = MinGRU(channels=CHANNELS, positive=positive)
    mixer = config.make(D, layer=LayerInfo(), rngs=nnx.Rngs(0))
    x = np.random.default_rng(0).normal(size=(2, T, D))
    ctx, _ = Context.of(2, T)
    y, _, _ = jax.jit(lambda x: mixer(x, None, ctx))(jnp.asarray(x, jnp.float32))
    z, c, o = (np.asarray(linear.kernel[...], np.float64) for linear in (mixer.z, mixer.c, mixer.o))
    assert_close(y, scan(x @ z, x @ c) @ o, TOL.f32_forward)
