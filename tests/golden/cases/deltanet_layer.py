"""DeltaNet as a whole layer: flash-linear-attention, over its naive recurrence."""

from effarch.mixers.deltanet import DeltaNet
from tests.golden import draw, fla_delta
from tests.golden.mixer import ours as run
from tests.golden.mixer import torchs

D, H, K = 16, 2, 8


def inputs(rng):
    weights = fla_delta.draw(rng, D, heads=H, key_dim=K, value_dim=K)
    return {"x": rng.normal(size=(1, draw.TIME, D)), **weights}


def independent(x, **weights):
    module = fla_delta.layer("DeltaNet", "delta_net")(hidden_size=D, num_heads=H, norm_eps=1e-6)
    return {"y": torchs(module, weights, x)[0]}


def ours(x, **weights):
    config = DeltaNet(num_heads=H, head_dim=K, value_head_dim=K)
    return {"y": run(config, D, x, fla_delta.parameters(weights, H, K, K))}
