"""Gated DeltaNet as a whole layer, two value heads to a key head: transformers, Qwen3-Next (its chunk form)."""

import jax.numpy as jnp

from effarch.mixers.gated_deltanet import GatedDeltaNet
from tests.golden import draw
from tests.golden.mixer import ours as run
from tests.golden.mixer import torchs

D, HK, H, K, V = 12, 2, 4, 8, 6


def inputs(rng):
    normal = {
        "in_proj_qkvz.weight": (2 * HK * K + 2 * H * V, D),
        "in_proj_ba.weight": (2 * H, D),
        "conv1d.weight": (2 * HK * K + H * V, 1, 4),
        "dt_bias": (H,),
        "norm.weight": (V,),
        "out_proj.weight": (D, H * V),
    }
    found = {name: rng.normal(size=shape) * shape[-1] ** -0.5 for name, shape in normal.items()}
    return {"x": rng.normal(size=(1, draw.TIME, D)), **found, "A_log": rng.uniform(-1, 1, size=H)}


def independent(x, **weights):
    from transformers import Qwen3NextConfig
    from transformers.models.qwen3_next.modeling_qwen3_next import Qwen3NextGatedDeltaNet

    config = Qwen3NextConfig(
        hidden_size=D,
        linear_num_key_heads=HK,
        linear_num_value_heads=H,
        linear_key_head_dim=K,
        linear_value_head_dim=V,
        num_hidden_layers=1,
        layer_types=["linear_attention"],
    )
    return {"y": torchs(Qwen3NextGatedDeltaNet(config, 0), weights, x)}


def ours(x, **w):
    """Their projections are grouped by key head: [q, k, v of two heads, z of two heads], and [b b, a a]."""
    each = H // HK
    qkvz = w["in_proj_qkvz.weight"].T.reshape(D, HK, -1)
    q, k, v, z = jnp.split(qkvz, [K, 2 * K, 2 * K + each * V], axis=-1)
    b, a = jnp.split(w["in_proj_ba.weight"].T.reshape(D, HK, -1), 2, axis=-1)
    parameters = {
        "q.kernel": q,
        "k.kernel": k,
        "v.kernel": v.reshape(D, H, V),
        "gate.kernel": z.reshape(D, H, V),
        "a.kernel": a.reshape(D, H),
        "b.kernel": b.reshape(D, H),
        "conv.weight": w["conv1d.weight"][:, 0].T,
        "dt_bias": w["dt_bias"],
        "log_rate": w["A_log"],
        "norm.weight": w["norm.weight"],
        "o.kernel": w["out_proj.weight"].T.reshape(H, V, D),
    }
    config = GatedDeltaNet(num_heads=H, num_key_heads=HK, head_dim=K, value_head_dim=V)
    return {"y": run(config, D, x, parameters)}
