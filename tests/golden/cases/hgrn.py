"""HGRN: flash-linear-attention, naive recurrence."""

import jax.numpy as jnp
import numpy as np

from effarch.ops.scan import linear_scan
from tests.golden import draw
from tests.golden.independent import naive


def inputs(rng):
    shape = (draw.BATCH, draw.TIME, 16)
    return {"x": rng.normal(size=shape), "log_decay": -np.exp(rng.uniform(-5, 1, size=shape))}


def independent(x, log_decay):
    o, final = naive("hgrn/naive").naive_recurrent_hgrn(x, log_decay, output_final_state=True)
    return {"o": o, "state": final}


def ours(x, log_decay):
    h, final = linear_scan((log_decay, x), state=jnp.zeros((x.shape[0], x.shape[2])))
    return {"o": h, "state": final}
