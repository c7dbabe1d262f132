"""The gated delta rule: transformers, Qwen3-Next, recurrent form in torch."""

from effarch.ops.recurrence import Delta, linear_recurrence
from tests.golden import draw


def inputs(rng):
    return {**draw.unit(draw.qkv(rng)), **draw.beta(rng), **draw.state(rng), **draw.decay(rng)}


def independent(q, k, v, beta, state, log_decay):
    from transformers.models.qwen3_next.modeling_qwen3_next import torch_recurrent_gated_delta_rule

    o, final = torch_recurrent_gated_delta_rule(
        q, k, v, g=log_decay, beta=beta, initial_state=state, output_final_state=True
    )
    return {"o": o, "state": final}


def ours(q, k, v, beta, state, log_decay):
    o, final = linear_recurrence(draw.scaled(q), k, v, transition=Delta(beta, log_decay), state=state)
    return {"o": o, "state": final}
