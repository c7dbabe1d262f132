"""The whole HGRN mixer, the last of three layers with its bound, and its state: flash-linear-attention's layer around
its naive recurrence.
"""

from effarch.mixers import LayerInfo
from effarch.mixers.hgrn import HGRN
from tests.golden import fla_layers
from tests.golden.cases.hgrn2_layer import LAYERS, bound
from tests.golden.independent import naive
from tests.golden.mixer import normal, ours_with_state, torchs

D = 10


def inputs(rng):
    names = ("i_proj", "f_proj", "g_proj", "o_proj")
    weights = normal(rng, **{f"{name}__weight": (D, D) for name in names}, g_norm__weight=(D,))
    return {"x": 2 * rng.normal(size=(1, 72, D)), "lower_bounds": rng.normal(size=(LAYERS, D)), **weights}


def independent(x, lower_bounds, **weights):
    op = naive("hgrn/naive").naive_recurrent_hgrn
    layer = fla_layers.gated_layer("hgrn", "hgrn", op).HGRNAttention(hidden_size=D, norm_eps=1e-6, layer_idx=2)
    y, _, _ = torchs(layer, weights, x, lower_bound=bound(lower_bounds))
    return {"y": y, "state": layer.state}


def ours(x, lower_bounds, **w):
    parameters = {
        **{f"{name}.kernel": w[f"{name}_proj.weight"].T for name in ("i", "f", "o")},
        "gate.kernel": w["g_proj.weight"].T,
        "norm.weight": w["g_norm.weight"],
        "bound.weight": lower_bounds,
    }
    y, state = ours_with_state(HGRN(), D, x, parameters, layer=LayerInfo(index=LAYERS - 1, count=LAYERS))
    return {"y": y, "state": state}
