"""The whole HGRN2 mixer, the last of three layers with its bound, and its state: flash-linear-attention's layer around
its naive recurrence of GLA.
"""

from effarch.mixers import LayerInfo
from effarch.mixers.hgrn2 import HGRN2
from tests.golden import fla_layers
from tests.golden.independent import naive
from tests.golden.mixer import heads, normal, ours_with_state, torchs

D, H, K, LAYERS = 12, 2, 6, 3


def inputs(rng):
    names = ("q_proj", "f_proj", "i_proj", "o_proj")
    weights = normal(rng, **{f"{name}__weight": (D, D) for name in names}, g_norm__weight=(D,))
    return {"x": 2 * rng.normal(size=(1, 40, D)), "lower_bounds": rng.normal(size=(LAYERS, D)), **weights}


def bound(lower_bounds):
    """As flash-linear-attention's models form it (``HGRN2Model.forward``)."""
    bounds = lower_bounds.softmax(0)
    return (bounds.cumsum(0) - bounds[0])[LAYERS - 1]


def independent(x, lower_bounds, **weights):
    op = naive("gla/naive").naive_recurrent_gla
    layer = fla_layers.gated_layer("hgrn2", "gla", op).HGRN2Attention(
        hidden_size=D, expand_ratio=K, layer_idx=LAYERS - 1
    )
    y, _, _ = torchs(layer, weights, x, lower_bound=bound(lower_bounds))
    return {"y": y, "state": layer.state}


def ours(x, lower_bounds, **w):
    parameters = {
        "q.kernel": heads(w["q_proj.weight"], H, K),
        "f.kernel": heads(w["f_proj.weight"], H, K),
        "v.kernel": heads(w["i_proj.weight"], H, K),
        "o.kernel": w["o_proj.weight"].T.reshape(H, K, D),
        "norm.weight": w["g_norm.weight"],
        "bound.weight": lower_bounds.reshape(LAYERS, H, K),
    }
    config, layer = HGRN2(num_heads=H, head_dim=K, value_head_dim=K), LayerInfo(index=LAYERS - 1, count=LAYERS)
    y, state = ours_with_state(config, D, x, parameters, layer=layer)
    return {"y": y, "state": state}
