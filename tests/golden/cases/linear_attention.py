"""Linear attention without decay: flash-linear-attention, naive recurrence."""

import jax.numpy as jnp

from effarch.ops.recurrence import Constant, linear_recurrence
from tests.golden import draw
from tests.golden.independent import naive


def inputs(rng):
    return {**draw.qkv(rng), **draw.state(rng)}


def independent(q, k, v, state):
    run = naive("linear_attn/naive").naive_recurrent_linear_attn
    o, final = run(q, k, v, initial_state=state, output_final_state=True)
    return {"o": o, "state": final}


def ours(q, k, v, state):
    o, final = linear_recurrence(draw.scaled(q), k, v, transition=Constant(jnp.zeros(v.shape[2])), state=state)
    return {"o": o, "state": final}
