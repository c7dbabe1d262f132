"""The gated delta rule: flash-linear-attention, naive recurrence."""

from effarch.ops.recurrence import Delta, linear_recurrence
from tests.golden import draw
from tests.golden.independent import naive


def inputs(rng):
    return {**draw.unit(draw.qkv(rng)), **draw.beta(rng), **draw.state(rng), **draw.decay(rng)}


def independent(q, k, v, beta, state, log_decay):
    o, final = naive("gated_delta_rule/naive").naive_recurrent_gated_delta_rule(
        q, k, v, beta, log_decay, initial_state=state, output_final_state=True
    )
    return {"o": o, "state": final}


def ours(q, k, v, beta, state, log_decay):
    o, final = linear_recurrence(draw.scaled(q), k, v, transition=Delta(beta, log_decay), state=state)
    return {"o": o, "state": final}
