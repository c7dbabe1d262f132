"""The whole NSA mixer: flash-linear-attention's layer around its naive functions, which want 16 queries to a key head.

Its own part of the window calls FlashAttention; that is in torch here.
"""

from effarch.mixers.nsa import NSA
from tests.golden import fla_sparse, mixer
from tests.golden.mixer import heads, normal, torchs

D, H, HK, K, SIZE, N, WINDOW = 12, 32, 2, 4, 6, 4, 9


def inputs(rng):
    shapes = {"q_proj": (H * K, D), "k_proj": (HK * K, D), "v_proj": (HK * K, D), "o_proj": (D, H * K)}
    weights = normal(rng, **{f"{name}__weight": shape for name, shape in shapes.items()}, g_proj__weight=(3 * H, D))
    return {"x": 2 * rng.normal(size=(2, 45, D)), **weights}


def independent(x, **weights):
    sizes = {"hidden_size": D, "num_heads": H, "num_kv_heads": HK, "head_dim": K}
    layer = fla_sparse.native_sparse_attention(**sizes, block_size=SIZE, block_counts=N, window_size=WINDOW)
    return {"y": torchs(layer, weights, x)[0]}


def ours(x, **w):
    parameters = {
        "qkv.q.kernel": heads(w["q_proj.weight"], H, K),
        "qkv.k.kernel": heads(w["k_proj.weight"], HK, K),
        "qkv.v.kernel": heads(w["v_proj.weight"], HK, K),
        "qkv.o.kernel": w["o_proj.weight"].T.reshape(H, K, D),
        "branches.kernel": heads(w["g_proj.weight"], H, 3),
    }
    config = NSA(num_heads=H, num_kv_heads=HK, head_dim=K, block_size=SIZE, top_n=N, window=WINDOW)
    return {"y": mixer.ours(config, D, x, parameters)}
