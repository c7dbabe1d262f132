"""KDA as a whole layer: transformers, Kimi Linear (its chunk form)."""

from effarch.mixers.kda import KDA
from tests.golden import draw
from tests.golden.mixer import heads, torchs
from tests.golden.mixer import ours as run

D, H, K = 12, 2, 8


def inputs(rng):
    normal = {
        "q_proj.weight": (H * K, D),
        "k_proj.weight": (H * K, D),
        "v_proj.weight": (H * K, D),
        "conv1d.weight": (3 * H * K, 1, 4),
        "forget_gate.f_a_proj.weight": (K, D),
        "forget_gate.f_b_proj.weight": (H * K, K),
        "forget_gate.dt_bias": (H * K,),
        "b_proj.weight": (H, D),
        "g_a_proj.weight": (K, D),
        "g_b_proj.weight": (H * K, K),
        "o_norm.weight": (K,),
        "o_proj.weight": (D, H * K),
    }
    found = {name: rng.normal(size=shape) * shape[-1] ** -0.5 for name, shape in normal.items()}
    found["forget_gate.A_log"] = rng.uniform(-1, 1, size=(1, 1, H, 1))
    return {"x": rng.normal(size=(1, draw.TIME, D)), **found}


def independent(x, **weights):
    from transformers import KimiLinearConfig
    from transformers.models.kimi_linear.modeling_kimi_linear import KimiLinearDeltaAttention

    config = KimiLinearConfig(hidden_size=D, linear_num_heads=H, linear_head_dim=K, rms_norm_eps=1e-6)
    return {"y": torchs(KimiLinearDeltaAttention(config, 0), weights, x)}


def ours(x, **w):
    parameters = {
        "q.kernel": heads(w["q_proj.weight"], H, K),
        "k.kernel": heads(w["k_proj.weight"], H, K),
        "v.kernel": heads(w["v_proj.weight"], H, K),
        "b.kernel": w["b_proj.weight"].T,
        "conv.weight": w["conv1d.weight"][:, 0].T,
        "a.inner.kernel": w["forget_gate.f_a_proj.weight"].T,
        "a.outer.kernel": heads(w["forget_gate.f_b_proj.weight"], H, K),
        "dt_bias": w["forget_gate.dt_bias"].reshape(H, K),
        "log_rate": w["forget_gate.A_log"].reshape(H),
        "gate.inner.kernel": w["g_a_proj.weight"].T,
        "gate.outer.kernel": heads(w["g_b_proj.weight"], H, K),
        "norm.weight": w["o_norm.weight"],
        "o.kernel": w["o_proj.weight"].T.reshape(H, K, D),
    }
    config = KDA(num_heads=H, head_dim=K, value_head_dim=K, gate_bias=False)
    return {"y": run(config, D, x, parameters)}
