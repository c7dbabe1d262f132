"""Gated linear attention: flash-linear-attention, naive recurrence."""

from effarch.ops.recurrence import Diagonal, linear_recurrence
from tests.golden import draw
from tests.golden.independent import naive


def inputs(rng):
    return {**draw.qkv(rng), **draw.decay(rng, draw.WIDTH), **draw.state(rng)}


def independent(q, k, v, log_decay, state):
    o, final = naive("gla/naive").naive_recurrent_gla(q, k, v, log_decay, state, output_final_state=True)
    return {"o": o, "state": final}


def ours(q, k, v, log_decay, state):
    o, final = linear_recurrence(draw.scaled(q), k, v, transition=Diagonal(log_decay), state=state)
    return {"o": o, "state": final}
