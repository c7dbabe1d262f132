"""The whole forgetting attention mixer, with norms and output gate: flash-linear-attention's layer and naive function.

Its norms have weights for each head, ours one for all: it is given ours once per head.
"""

from effarch.mixers.forgetting_attention import ForgettingAttention
from tests.golden import fla_sparse, mixer
from tests.golden.mixer import heads, normal, torchs

D, H, HK, K = 16, 4, 2, 4


def inputs(rng):
    shapes = {"q_proj": (D, D), "k_proj": (HK * K, D), "v_proj": (HK * K, D), "g_proj": (D, D), "o_proj": (D, D)}
    weights = normal(rng, **{f"{name}__weight": shape for name, shape in shapes.items()}, f_proj__weight=(H, D))
    norms = {f"{name}_norm.weight": rng.uniform(0.5, 2, size=K) for name in "qk"}
    return {"x": rng.normal(size=(2, 40, D)), "f_proj.bias": rng.normal(size=H), **weights, **norms}


def independent(x, **weights):
    layer = fla_sparse.forgetting_attention(
        hidden_size=D, num_heads=H, num_kv_heads=HK, qk_norm=True, use_output_gate=True
    )
    per_head = {f"{name}_norm.weight": weights[f"{name}_norm.weight"].repeat(n) for name, n in (("q", H), ("k", HK))}
    return {"y": torchs(layer, weights | per_head, x)[0]}


def ours(x, **w):
    counts = {"q": H, "k": HK, "v": HK}
    parameters = {f"qkv.{name}.kernel": heads(w[f"{name}_proj.weight"], n, K) for name, n in counts.items()}
    parameters |= {
        "qkv.o.kernel": w["o_proj.weight"].T.reshape(H, K, D),
        "gate.kernel": heads(w["g_proj.weight"], H, K),
        "forget.kernel": w["f_proj.weight"].T,
        "forget.bias": w["f_proj.bias"],
        "q_norm.weight": w["q_norm.weight"],
        "k_norm.weight": w["k_norm.weight"],
    }
    config = ForgettingAttention(num_heads=H, num_kv_heads=HK, head_dim=K, qk_norm=True, gate=True)
    return {"y": mixer.ours(config, D, x, parameters)}
