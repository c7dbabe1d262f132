"""KDA, a decay per channel: flash-linear-attention, naive recurrence."""

from effarch.ops.recurrence import Delta, linear_recurrence
from tests.golden import draw
from tests.golden.independent import naive


def inputs(rng):
    return {**draw.unit(draw.qkv(rng)), **draw.beta(rng), **draw.state(rng), **draw.decay(rng, draw.WIDTH)}


def independent(q, k, v, beta, state, log_decay):
    o, final = naive("kda/naive").naive_recurrent_kda(
        q, k, v, log_decay, beta, initial_state=state, output_final_state=True
    )
    return {"o": o, "state": final}


def ours(q, k, v, beta, state, log_decay):
    o, final = linear_recurrence(draw.scaled(q), k, v, transition=Delta(beta, log_decay), state=state)
    return {"o": o, "state": final}
