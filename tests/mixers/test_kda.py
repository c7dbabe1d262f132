"""KDA's two decays, by their formulas."""

import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from effarch.mixers import LayerInfo
from effarch.mixers.kda import KDA
from tests.tolerances import TOL, assert_close

H, K, D = 2, 4, 6


@pytest.mark.parametrize("bound", [None, -5.0])
@pytest.mark.parametrize("scale", [1.0, 1e3])
def test_decays(bound, scale):
    """Per head a rate, per channel a bias; bounded ones stay in [bound, 0], also for inputs far too large."""
    rng = np.random.default_rng(0)
    config = KDA(num_heads=H, head_dim=K, value_head_dim=K, lower_bound=bound)
    mixer = config.make(D, layer=LayerInfo(), rngs=nnx.Rngs(0))
    mixer.log_rate[...] = jnp.asarray(rng.normal(size=H), jnp.float32)
    x = scale * rng.normal(size=(2, 7, D))
    found = np.asarray(mixer.log_decay(jnp.asarray(x, jnp.float32)))
    inner, outer, rate, bias = (
        np.asarray(p[...], np.float64)
        for p in (mixer.a.inner.kernel, mixer.a.outer.kernel, mixer.log_rate, mixer.dt_bias)
    )
    y = np.einsum("btd,dr,rhk->bthk", x, inner, outer) + bias
    rate = np.exp(rate)[:, None]
    expected = -rate * np.logaddexp(0, y) if bound is None else bound * np.exp(-np.logaddexp(0, -rate * y))
    assert_close(found, expected, TOL.f32_forward)
    assert (found <= 0).all() and (bound is None or (found >= bound).all())
