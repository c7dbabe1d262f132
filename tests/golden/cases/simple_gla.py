"""Gated retention: flash-linear-attention, naive recurrence."""

from effarch.ops.recurrence import Scalar, linear_recurrence
from tests.golden import draw
from tests.golden.independent import naive


def inputs(rng):
    return {**draw.qkv(rng), **draw.decay(rng), **draw.state(rng)}


def independent(q, k, v, log_decay, state):
    o, final = naive("simple_gla/naive").naive_recurrent_simple_gla(q, k, v, log_decay, initial_state=state)
    return {"o": o, "state": final}


def ours(q, k, v, log_decay, state):
    o, final = linear_recurrence(draw.scaled(q), k, v, transition=Scalar(log_decay), state=state)
    return {"o": o, "state": final}
