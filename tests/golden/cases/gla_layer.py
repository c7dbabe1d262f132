"""The whole GLA mixer and its state: flash-linear-attention's layer around its naive recurrence."""

from effarch.mixers.gla import GLA
from tests.golden import fla_layers
from tests.golden.independent import naive
from tests.golden.mixer import heads, normal, ours_with_state, torchs

D, H, K, V, RANK = 16, 2, 4, 8, 3


def inputs(rng):
    weights = normal(
        rng,
        q_proj__weight=(H * K, D),
        k_proj__weight=(H * K, D),
        v_proj__weight=(H * V, D),
        g_proj__weight=(H * V, D),
        gk_proj__0__weight=(RANK, D),
        gk_proj__1__weight=(H * K, RANK),
        gk_proj__1__bias=(H * K,),
        g_norm_swish_gate__weight=(V,),
        o_proj__weight=(D, H * V),
    )
    return {"x": 2 * rng.normal(size=(1, 40, D)), **weights}


def independent(x, **weights):
    layer = fla_layers.gated_layer("gla", "gla", naive("gla/naive").naive_recurrent_gla).GatedLinearAttention(
        hidden_size=D, num_heads=H, gate_low_rank_dim=RANK, norm_eps=1e-6, layer_idx=0
    )
    y, _, _ = torchs(layer, weights, x)
    return {"y": y, "state": layer.state}


def ours(x, **w):
    parameters = {
        "qkv.q.kernel": heads(w["q_proj.weight"], H, K),
        "qkv.k.kernel": heads(w["k_proj.weight"], H, K),
        "qkv.v.kernel": heads(w["v_proj.weight"], H, V),
        "qkv.o.kernel": w["o_proj.weight"].T.reshape(H, V, D),
        "gate.kernel": heads(w["g_proj.weight"], H, V),
        "a.inner.kernel": w["gk_proj.0.weight"].T,
        "a.outer.kernel": heads(w["gk_proj.1.weight"], H, K),
        "a.bias": w["gk_proj.1.bias"].reshape(H, K),
        "norm.weight": w["g_norm_swish_gate.weight"],
    }
    config = GLA(num_heads=H, head_dim=K, value_head_dim=V, gate_rank=RANK)
    y, state = ours_with_state(config, D, x, parameters)
    return {"y": y, "state": state}
