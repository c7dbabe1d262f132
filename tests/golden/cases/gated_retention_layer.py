"""The whole gated retention mixer and its state: flash-linear-attention's simple GLA layer, without convolutions,
around its naive recurrence.
"""

from effarch.mixers.gated_retention import GatedRetention
from tests.golden import fla_layers
from tests.golden.independent import naive
from tests.golden.mixer import heads, normal, ours_with_state, torchs

D, H, K = 12, 2, 6


def inputs(rng):
    names = ("q_proj", "k_proj", "v_proj", "g_proj", "o_proj")
    weights = normal(rng, **{f"{name}__weight": (D, D) for name in names})
    weights |= normal(rng, gk_proj__weight=(H, D), gk_proj__bias=(H,), g_norm_swish_gate__weight=(K,))
    return {"x": 2 * rng.normal(size=(1, 40, D)), **weights}


def independent(x, **weights):
    op = naive("simple_gla/naive").naive_recurrent_simple_gla
    layer = fla_layers.gated_layer("simple_gla", "simple_gla", op).SimpleGatedLinearAttention(
        hidden_size=D, num_heads=H, use_short_conv=False, norm_eps=1e-6, layer_idx=0
    )
    y, _, _ = torchs(layer, weights, x)
    return {"y": y, "state": layer.state}


def ours(x, **w):
    parameters = {
        **{f"qkv.{name}.kernel": heads(w[f"{name}_proj.weight"], H, K) for name in "qkv"},
        "qkv.o.kernel": w["o_proj.weight"].T.reshape(H, K, D),
        "gate.kernel": heads(w["g_proj.weight"], H, K),
        "a.kernel": w["gk_proj.weight"].T,
        "a.bias": w["gk_proj.bias"],
        "norm.weight": w["g_norm_swish_gate.weight"],
    }
    y, state = ours_with_state(GatedRetention(num_heads=H, head_dim=K, value_head_dim=K), D, x, parameters)
    return {"y": y, "state": state}
