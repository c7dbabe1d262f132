"""Block-diagonal maps against the full matrix that they are the blocks of."""

import jax.numpy as jnp
import numpy as np
from flax import nnx

from effarch.nn.block_linear import BlockLinear
from tests.tolerances import TOL, assert_close


def test_blocks_are_those_of_a_matrix():
    rng = np.random.default_rng(0)
    layer = BlockLinear(3, 4, 5, bias=True, rngs=nnx.Rngs(0))
    bias = rng.normal(size=(3, 5))
    layer.bias[...] = jnp.asarray(bias, jnp.float32)
    full = np.zeros((12, 15))
    for h, block in enumerate(np.asarray(layer.kernel[...])):
        full[4 * h : 4 * h + 4, 5 * h : 5 * h + 5] = block
    x = rng.normal(size=(2, 7, 12))
    y = layer(jnp.asarray(x.reshape(2, 7, 3, 4), jnp.float32))
    assert_close(y.reshape(2, 7, 15), x @ full + bias.reshape(-1), TOL.f32_forward)
