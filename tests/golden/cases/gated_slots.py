"""Gated slot attention: flash-linear-attention, naive recurrence."""

import jax
import numpy as np

from effarch.ops.recurrence import Diagonal, Scalar, linear_recurrence
from tests.golden import draw
from tests.golden.independent import naive


def inputs(rng):
    found = draw.qkv(rng)
    decay = draw.decay(rng, 6)["log_decay"]
    return {**found, "s": 1 - np.exp(decay), "log_decay": decay}


def independent(q, k, v, s, log_decay):
    return {"o": naive("gsa/naive").naive_recurrent_gsa(q, k, v, s, log_decay)[0]}


def ours(q, k, v, s, log_decay):
    """In the first pass every slot is a head whose value has one channel; in the second slots are the channels of k."""

    def each(x):
        return x.reshape(*x.shape[:2], -1)

    scores, _ = linear_recurrence(draw.scaled(q), k, each(s)[..., None], transition=Scalar(each(log_decay)))
    p = jax.nn.softmax(scores.reshape(s.shape), axis=-1)
    return {"o": linear_recurrence(p, s, v, transition=Diagonal(log_decay))[0]}
