"""Retention: flash-linear-attention, naive parallel form."""

import jax.numpy as jnp

from effarch.ops.recurrence import Constant, linear_recurrence
from tests.golden import draw
from tests.golden.independent import heads_first, naive


def inputs(rng):
    return draw.qkv(rng)


def independent(q, k, v):
    return {"o": naive("retention/naive").naive_retention(*heads_first(q, k, v)).transpose(1, 2)}


def ours(q, k, v):
    decay = jnp.log1p(-(2.0 ** (-5.0 - jnp.arange(v.shape[2], dtype=jnp.float32))))
    return {"o": linear_recurrence(draw.scaled(q), k, v, transition=Constant(decay))[0]}
