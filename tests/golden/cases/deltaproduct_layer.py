"""DeltaProduct (no decay, no output gate) as a whole layer, three writes per token: flash-linear-attention, naive."""

from effarch.mixers.deltaproduct import DeltaProduct
from tests.golden import draw, fla_delta
from tests.golden.mixer import ours as run
from tests.golden.mixer import torchs

D, H, K, V, N = 12, 2, 8, 16, 3


def inputs(rng):
    weights = fla_delta.draw(rng, D, heads=H, key_dim=K, value_dim=V, writes=N, gated=False)
    return {"x": rng.normal(size=(1, draw.TIME, D)), **weights}


def independent(x, **weights):
    module = fla_delta.layer("GatedDeltaProduct", "gated_deltaproduct")(
        hidden_size=D,
        num_heads=H,
        head_dim=K,
        num_householder=N,
        use_forget_gate=False,
        use_output_gate=False,
        norm_eps=1e-6,
    )
    return {"y": torchs(module, weights, x)[0]}


def ours(x, **weights):
    config = DeltaProduct(num_heads=H, head_dim=K, value_head_dim=V, steps=N)
    return {"y": run(config, D, x, fla_delta.parameters(weights, H, K, V, (N,)))}
