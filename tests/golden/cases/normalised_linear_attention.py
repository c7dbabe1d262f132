"""Linear attention with elu + 1 and a denominator: flash-linear-attention, naive recurrence, from a state and sum."""

import jax.numpy as jnp
import numpy as np

from effarch.ops.features import Features, elu_plus_one
from effarch.ops.normalised import normalised_attention
from tests.golden import draw
from tests.golden.independent import naive


def inputs(rng):
    found = {**draw.qkv(rng), **draw.state(rng)}
    return {**found, "state": np.abs(found["state"]), "total": rng.uniform(1, 2, size=(1, 1, draw.HEADS, draw.WIDTH))}


def independent(q, k, v, state, total):
    from torch.nn.functional import elu

    run = naive("linear_attn/naive").naive_recurrent_linear_attn
    o, (final, sums) = run(
        elu(q) + 1, elu(k) + 1, v, initial_state=(state, total), output_final_state=True, normalize=True
    )
    return {"o": o, "state": final, "total": sums}


def ours(q, k, v, state, total):
    before = jnp.concatenate([state, jnp.moveaxis(total, 1, -1)], axis=-1)
    o, after = normalised_attention(Features(elu_plus_one(q)), Features(elu_plus_one(k)), v, state=before)
    return {"o": o, "state": after[..., :-1], "total": jnp.moveaxis(after[..., -1:], -1, 1)}
