"""Diagonal plus rank one: flash-linear-attention, naive DPLR recurrence."""

import numpy as np

from effarch.ops.recurrence import DiagonalPlusRankOne, linear_recurrence
from tests.golden import draw
from tests.golden.independent import heads_first, naive


def inputs(rng):
    found = {**draw.qkv(rng), **draw.decay(rng, draw.WIDTH), **draw.state(rng)}
    removed = rng.normal(size=found["q"].shape)
    removed /= np.linalg.norm(removed, axis=-1, keepdims=True)
    return {**found, "r": removed, "p": -removed * rng.uniform(0, 1, size=removed.shape)}


def independent(q, k, v, log_decay, state, r, p):
    run = naive("generalized_delta_rule/dplr/naive").dplr_recurrence
    o, final = run(*heads_first(q, k, v, r, p, log_decay), initial_state=state)
    return {"o": o.transpose(1, 2), "state": final}


def ours(q, k, v, log_decay, state, r, p):
    transition = DiagonalPlusRankOne(log_decay, p=p, r=r)
    o, final = linear_recurrence(draw.scaled(q), k, v, transition=transition, state=state)
    return {"o": o, "state": final}
