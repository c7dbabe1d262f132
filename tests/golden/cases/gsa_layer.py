"""The whole gated slot attention mixer and its states: flash-linear-attention's layer around its naive recurrence."""

from effarch.mixers.gsa import GSA
from tests.golden import fla_layers
from tests.golden.independent import naive
from tests.golden.mixer import heads, normal, ours_with_state, torchs

D, H, K, M = 12, 2, 6, 4


def inputs(rng):
    names = ("q_proj", "k_proj", "v_proj", "o_proj")
    weights = normal(rng, **{f"{name}__weight": (D, D) for name in names})
    weights |= normal(rng, f_proj__weight=(H * M, D), g_norm__weight=(D,))
    return {"x": 3 * rng.normal(size=(1, 40, D)), **weights}


def independent(x, **weights):
    op = naive("gsa/naive").naive_recurrent_gsa
    layer = fla_layers.gated_layer("gsa", "gsa", op).GatedSlotAttention(
        hidden_size=D, num_heads=H, num_slots=M, layer_idx=0
    )
    y, _, _ = torchs(layer, weights, x)
    keys, values = layer.state
    return {"y": y, "keys": keys, "values": values}


def ours(x, **w):
    parameters = {
        **{f"qkv.{name}.kernel": heads(w[f"{name}_proj.weight"], H, K) for name in "qkv"},
        "qkv.o.kernel": w["o_proj.weight"].T.reshape(H, K, D),
        "f.kernel": heads(w["f_proj.weight"], H, M),
        "norm.weight": w["g_norm.weight"],
    }
    config = GSA(num_heads=H, head_dim=K, value_head_dim=K, num_slots=M)
    y, (keys, values) = ours_with_state(config, D, x, parameters)
    return {"y": y, "keys": keys.reshape(-1, H, M, K).swapaxes(-1, -2), "values": values}
