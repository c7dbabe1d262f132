"""Gated DeltaProduct, two steps a token: flash-linear-attention, naive recurrence."""

import jax.numpy as jnp

from effarch.ops.recurrence import Delta, linear_recurrence
from tests.golden import draw
from tests.golden.independent import naive

STEPS = 2


def inputs(rng):
    found = {**draw.qkv(rng), **draw.decay(rng), **draw.state(rng), **draw.beta(rng, STEPS * draw.TIME)}
    shape = (draw.BATCH, STEPS * draw.TIME, draw.HEADS)
    more = {"k": rng.normal(size=(*shape, draw.WIDTH)), "v": rng.normal(size=(*shape, draw.VALUE))}
    return draw.unit({**found, **more})


def independent(q, k, v, log_decay, state, beta):
    o, final = naive("gated_delta_product/naive").naive_recurrent_gated_delta_product(
        q,
        k,
        v,
        log_decay,
        beta,
        q.shape[-1] ** -0.5,
        initial_state=state,
        output_final_state=True,
        num_householder=STEPS,
    )
    return {"o": o, "state": final}


def ours(q, k, v, log_decay, state, beta):
    """It decays before the first step of a token, and is read after the last."""

    def spread(x, place):
        apart = jnp.zeros((x.shape[0], x.shape[1], STEPS, *x.shape[2:])).at[:, :, place].set(x)
        return apart.reshape(x.shape[0], -1, *x.shape[2:])

    transition = Delta(beta, spread(log_decay, 0))
    o, final = linear_recurrence(draw.scaled(spread(q, -1)), k, v, transition=transition, state=state)
    return {"o": o[:, STEPS - 1 :: STEPS], "state": final}
