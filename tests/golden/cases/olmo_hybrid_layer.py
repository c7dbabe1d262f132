"""Gated DeltaNet as a whole layer, with negative eigenvalues: transformers, OLMo Hybrid (its chunk form)."""

from effarch.mixers.gated_deltanet import GatedDeltaNet
from tests.golden import draw
from tests.golden.mixer import heads, torchs
from tests.golden.mixer import ours as run

D, H, K, V = 12, 2, 8, 10


def inputs(rng):
    normal = {
        "q_proj.weight": (H * K, D),
        "k_proj.weight": (H * K, D),
        "v_proj.weight": (H * V, D),
        "g_proj.weight": (H * V, D),
        "a_proj.weight": (H, D),
        "b_proj.weight": (H, D),
        "conv1d.weight": (2 * H * K + H * V, 1, 4),
        "dt_bias": (H,),
        "o_norm.weight": (V,),
        "o_proj.weight": (D, H * V),
    }
    found = {name: rng.normal(size=shape) * shape[-1] ** -0.5 for name, shape in normal.items()}
    return {"x": rng.normal(size=(1, draw.TIME, D)), **found, "A_log": rng.uniform(-4, 0, size=H)}


def independent(x, **weights):
    from transformers import OlmoHybridConfig
    from transformers.models.olmo_hybrid.modeling_olmo_hybrid import OlmoHybridGatedDeltaNet

    config = OlmoHybridConfig(
        hidden_size=D,
        num_attention_heads=H,
        linear_key_head_dim=K,
        linear_value_head_dim=V,
        linear_allow_neg_eigval=True,
    )
    return {"y": torchs(OlmoHybridGatedDeltaNet(config, 0), weights, x)}


def ours(x, **w):
    parameters = {
        "q.kernel": heads(w["q_proj.weight"], H, K),
        "k.kernel": heads(w["k_proj.weight"], H, K),
        "v.kernel": heads(w["v_proj.weight"], H, V),
        "gate.kernel": heads(w["g_proj.weight"], H, V),
        "a.kernel": w["a_proj.weight"].T,
        "b.kernel": w["b_proj.weight"].T,
        "conv.weight": w["conv1d.weight"][:, 0].T,
        "dt_bias": w["dt_bias"],
        "log_rate": w["A_log"],
        "norm.weight": w["o_norm.weight"],
        "o.kernel": w["o_proj.weight"].T.reshape(H, V, D),
    }
    config = GatedDeltaNet(num_heads=H, head_dim=K, value_head_dim=V, negative_eigenvalues=True, norm_eps=1e-5)
    return {"y": run(config, D, x, parameters)}
