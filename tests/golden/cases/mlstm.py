"""The whole mLSTM mixer: transformers, xLSTM-7B's layer, in torch: two chunks of 16, then 8 tokens one by one; its
states scaled back by e^m (over e^15, lest their gradients drown the others). Input gates are large and values small, so
that the floor of the denominator and 1e-6 in the norm count.
"""

import jax
import jax.numpy as jnp

from effarch.mixers.mlstm import MLSTM
from tests.golden.mixer import heads, normal, ours_with_state, torchs

D, H, K, V, CAP = 16, 2, 4, 8, 15.0


def inputs(rng):
    found = normal(
        rng,
        q__weight=(H * K, D),
        k__weight=(H * K, D),
        v__weight=(H * V, D),
        ogate_preact__weight=(H * V, D),
        igate_preact__weight=(H, D),
        igate_preact__bias=(H,),
        fgate_preact__weight=(H, D),
        fgate_preact__bias=(H,),
        multihead_norm__weight=(H * V,),
        out_proj__weight=(D, H * V),
    )
    found["igate_preact.weight"] *= 8
    found["v.weight"] *= 2e-3
    return {"x": rng.normal(size=(1, 40, D)), **found}


def independent(x, **weights):
    import torch
    from transformers import xLSTMConfig
    from transformers.models.xlstm.modeling_xlstm import xLSTMLayer

    config = xLSTMConfig(hidden_size=D, num_heads=H, chunk_size=16, autocast_kernel_dtype="float32")
    y, (c, n, m) = torchs(xLSTMLayer(config), weights, x)
    scale = torch.exp(m - CAP)
    return {"y": y, "c": c * scale[..., None], "n": n * scale, "m": m[..., 0]}


def ours(x, **w):
    parameters = {
        "qkv.q.kernel": heads(w["q.weight"], H, K),
        "qkv.k.kernel": heads(w["k.weight"], H, K),
        "qkv.v.kernel": heads(w["v.weight"], H, V),
        "qkv.o.kernel": w["out_proj.weight"].T.reshape(H, V, D),
        "gate.kernel": heads(w["ogate_preact.weight"], H, V),
        "i.kernel": w["igate_preact.weight"].T,
        "i_bias": w["igate_preact.bias"],
        "f.kernel": w["fgate_preact.weight"].T,
        "f_bias": w["fgate_preact.bias"],
        "norm.weight": w["multihead_norm.weight"].reshape(H, V),
    }
    y, (s, m) = ours_with_state(MLSTM(num_heads=H, head_dim=K, value_head_dim=V), D, x, parameters)
    s = s * jnp.exp(jax.lax.stop_gradient(m) - CAP)[..., None, None]
    return {"y": y, "c": s[..., :-1], "n": s[..., -1], "m": m}
