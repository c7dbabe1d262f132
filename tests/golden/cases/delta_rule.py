"""The delta rule: flash-linear-attention, naive recurrence."""

from effarch.ops.recurrence import Delta, linear_recurrence
from tests.golden import draw
from tests.golden.independent import heads_first, naive


def inputs(rng):
    return {**draw.unit(draw.qkv(rng)), **draw.beta(rng), **draw.state(rng)}


def independent(q, k, v, beta, state):
    o, final = naive("delta_rule/naive").delta_rule_recurrence(*heads_first(q, k, v, beta), initial_state=state)
    return {"o": o.transpose(1, 2), "state": final}


def ours(q, k, v, beta, state):
    o, final = linear_recurrence(draw.scaled(q), k, v, transition=Delta(beta), state=state)
    return {"o": o, "state": final}
