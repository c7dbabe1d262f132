"""Gated DeltaProduct as a whole layer, three writes per token: flash-linear-attention, over its naive recurrence."""

from effarch.mixers.deltaproduct import GatedDeltaProduct
from tests.golden import draw, fla_delta
from tests.golden.mixer import ours as run
from tests.golden.mixer import torchs

D, H, K, V, N = 12, 2, 8, 16, 3


def inputs(rng):
    weights = fla_delta.draw(rng, D, heads=H, key_dim=K, value_dim=V, writes=N, gated=True)
    return {"x": rng.normal(size=(1, draw.TIME, D)), **weights}


def independent(x, **weights):
    module = fla_delta.layer("GatedDeltaProduct", "gated_deltaproduct")(
        hidden_size=D,
        num_heads=H,
        head_dim=K,
        num_householder=N,
        use_forget_gate=True,
        use_output_gate=True,
        norm_eps=1e-6,
    )
    return {"y": torchs(module, weights, x)[0]}


def ours(x, **weights):
    config = GatedDeltaProduct(num_heads=H, head_dim=K, value_head_dim=V, steps=N)
    return {"y": run(config, D, x, fla_delta.parameters(weights, H, K, V, (N,)))}
