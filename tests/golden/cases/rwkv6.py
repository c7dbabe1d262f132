"""RWKV-6, read before writing, with its bonus: flash-linear-attention, naive recurrence."""

from effarch.ops.recurrence import Diagonal, linear_recurrence
from tests.golden import draw
from tests.golden.independent import heads_first, naive


def inputs(rng):
    found = {**draw.qkv(rng), **draw.decay(rng, draw.WIDTH), **draw.state(rng)}
    return {**found, "u": rng.normal(size=(draw.HEADS, draw.WIDTH))}


def independent(q, k, v, log_decay, state, u):
    o, final = naive("rwkv6/recurrent_naive").naive_recurrent_rwkv6(
        *heads_first(q, k, v, log_decay), u, scale=1.0, initial_state=state, output_final_state=True
    )
    return {"o": o.transpose(1, 2), "state": final}


def ours(q, k, v, log_decay, state, u):
    o, final = linear_recurrence(q, k, v, transition=Diagonal(log_decay), state=state, read="before")
    own = (q * u[None, None] * k).sum(axis=-1, keepdims=True) * v
    return {"o": o + own, "state": final}
