"""The whole HGRN2 mixer, the last of three layers: flash-linear-attention, its layer's gate (by logaddexp) and output
around the naive recurrence of GLA.
"""

from effarch.mixers import LayerInfo
from effarch.mixers.hgrn2 import HGRN2
from tests.golden.independent import naive
from tests.golden.modules import call, put

DIM, HEADS, WIDTH, LAYERS = 12, 2, 6, 3


def inputs(rng):
    return {"x": 2 * rng.normal(size=(1, 40, DIM)), "lower_bounds": rng.normal(size=(LAYERS, HEADS * WIDTH))}


def weights(rng):
    return {name: rng.normal(size=(DIM, DIM)) * DIM**-0.5 for name in ("q", "f", "i", "o")} | {
        "norm": 1 + 0.3 * rng.normal(size=DIM)
    }


def independent(x, lower_bounds, q, f, i, o, norm):
    import torch
    import torch.nn.functional as F

    bounds = lower_bounds.softmax(0)
    bound = (bounds.cumsum(0) - bounds[0])[LAYERS - 1]
    log_decay = torch.logaddexp(bound.log(), torch.log1p(-bound) + F.logsigmoid(x @ f.T))
    heads = [y.reshape(*y.shape[:2], HEADS, -1) for y in (F.silu(x @ q.T), 1 - log_decay.exp(), x @ i.T, log_decay)]
    y, state = naive("gla/naive").naive_recurrent_gla(*heads, output_final_state=True)
    y = F.rms_norm(y.reshape(*x.shape), (DIM,), norm, 1e-6)
    return {"y": y @ o.T, "state": state}


def ours(x, lower_bounds, q, f, i, o, norm):
    def load(mixer):
        for linear, weight in ((mixer.q, q), (mixer.f, f), (mixer.v, i), (mixer.o, o)):
            put(linear.kernel, weight, transpose=True)
        put(mixer.norm.weight, norm)
        put(mixer.bound.weight, lower_bounds)

    config = HGRN2(num_heads=HEADS, head_dim=WIDTH, value_head_dim=WIDTH)
    y, state = call(config, x, load, layer=LayerInfo(index=LAYERS - 1, count=LAYERS))
    return {"y": y, "state": state}
