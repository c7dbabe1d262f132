"""Griffin's recurrent block as a whole layer: transformers, RecurrentGemma (a loop over time)."""

import numpy as np

from effarch.mixers.rg_lru import RGLRU
from tests.golden import draw
from tests.golden.mixer import heads, torchs
from tests.golden.mixer import ours as run

D, H, K = 12, 2, 6


def inputs(rng):
    normal = {
        "linear_x.weight": (H * K, D),
        "linear_y.weight": (H * K, D),
        "linear_out.weight": (D, H * K),
        "linear_x.bias": (H * K,),
        "linear_y.bias": (H * K,),
        "linear_out.bias": (D,),
        "conv_1d.weight": (H * K, 1, 4),
        "conv_1d.bias": (H * K,),
        "rg_lru.input_gate_weight": (H, K, K),
        "rg_lru.input_gate_bias": (H, K),
        "rg_lru.recurrent_gate_weight": (H, K, K),
        "rg_lru.recurrent_gate_bias": (H, K),
    }
    found = {name: rng.normal(size=shape) * shape[-1] ** -0.5 for name, shape in normal.items()}
    found["rg_lru.recurrent_param"] = rng.uniform(-4, 0, size=H * K)
    return {"x": rng.normal(size=(1, draw.TIME, D)), **found}


def independent(x, **weights):
    import torch
    from transformers import RecurrentGemmaConfig
    from transformers.models.recurrent_gemma.modeling_recurrent_gemma import RecurrentGemmaRecurrentBlock

    config = RecurrentGemmaConfig(hidden_size=D, lru_width=H * K, num_attention_heads=H, conv1d_width=4)
    times = torch.tensor(np.arange(draw.TIME)[None])
    block = RecurrentGemmaRecurrentBlock(config, 0)
    return {"y": torchs(block, weights, x, position_ids=times, attention_mask=None, use_cache=False)[0]}


def ours(x, **w):
    parameters = {
        "x.kernel": heads(w["linear_x.weight"], H, K),
        "x.bias": w["linear_x.bias"].reshape(H, K),
        "gate.kernel": heads(w["linear_y.weight"], H, K),
        "gate.bias": w["linear_y.bias"].reshape(H, K),
        "conv.weight": w["conv_1d.weight"][:, 0].T,
        "conv.bias": w["conv_1d.bias"],
        "a.kernel": w["rg_lru.recurrent_gate_weight"],
        "a.bias": w["rg_lru.recurrent_gate_bias"],
        "i.kernel": w["rg_lru.input_gate_weight"],
        "i.bias": w["rg_lru.input_gate_bias"],
        "rate": w["rg_lru.recurrent_param"].reshape(H, K),
        "o.kernel": w["linear_out.weight"].T.reshape(H, K, D),
        "o.bias": w["linear_out.bias"],
    }
    return {"y": run(RGLRU(num_heads=H, head_dim=K), D, x, parameters)}
