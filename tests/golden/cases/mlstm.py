"""The whole mLSTM mixer: transformers, xLSTM-7B's layer, in torch: two chunks of 16, then 8 tokens one by one; its
states scaled back by e^m (over e^15, lest their gradients drown the others). Input gates are large and values small, so
that the floor of the denominator and 1e-6 in the norm count.
"""

import jax
import jax.numpy as jnp

from effarch.mixers.mlstm import MLSTM
from tests.golden.modules import call, put

DIM, HEADS = 16, 2
KEY, VALUE = DIM // 2, DIM
CAP = 15.0


def inputs(rng):
    return {"x": rng.normal(size=(1, 40, DIM))}


def weights(rng):
    shapes = {
        "q": (KEY, DIM),
        "k": (KEY, DIM),
        "v": (VALUE, DIM),
        "ogate_preact": (VALUE, DIM),
        "igate_preact": (HEADS, DIM),
        "fgate_preact": (HEADS, DIM),
        "out_proj": (DIM, VALUE),
    }
    found = {f"{name}.weight": rng.normal(size=shape) * shape[1] ** -0.5 for name, shape in shapes.items()}
    found["igate_preact.weight"] *= 8
    found["v.weight"] *= 2e-3
    return found | {
        "igate_preact.bias": rng.normal(size=HEADS),
        "fgate_preact.bias": 1 + rng.normal(size=HEADS),
        "multihead_norm.weight": 1 + 0.3 * rng.normal(size=VALUE),
    }


def independent(x, **weights):
    import torch
    from transformers import xLSTMConfig
    from transformers.models.xlstm.modeling_xlstm import xLSTMLayer

    config = xLSTMConfig(hidden_size=DIM, num_heads=HEADS, chunk_size=16, autocast_kernel_dtype="float32")
    module = xLSTMLayer(config)
    module.load_state_dict(weights)
    y, (c, n, m) = module(x)
    scale = torch.exp(m - CAP)
    return {"y": y, "c": c * scale[..., None], "n": n * scale, "m": m[..., 0]}


def ours(x, **weights):
    def load(mixer):
        for linear, name in (
            (mixer.qkv.q, "q"),
            (mixer.qkv.k, "k"),
            (mixer.qkv.v, "v"),
            (mixer.gate, "ogate_preact"),
            (mixer.i, "igate_preact"),
            (mixer.f, "fgate_preact"),
            (mixer.qkv.o, "out_proj"),
        ):
            put(linear.kernel, weights[f"{name}.weight"], transpose=True)
        put(mixer.i_bias, weights["igate_preact.bias"])
        put(mixer.f_bias, weights["fgate_preact.bias"])
        put(mixer.norm.weight, weights["multihead_norm.weight"])

    config = MLSTM(num_heads=HEADS, head_dim=KEY // HEADS, value_head_dim=VALUE // HEADS)
    y, (s, m) = call(config, x, load)
    s = s * jnp.exp(jax.lax.stop_gradient(m) - CAP)[..., None, None]
    return {"y": y, "c": s[..., :-1], "n": s[..., -1], "m": m}
