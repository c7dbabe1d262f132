"""The whole lightning attention mixer, layer 1 of 4, and its state: transformers, MiniMax-01."""

import jax.numpy as jnp

from effarch.mixers import LayerInfo
from effarch.mixers.lightning import Lightning
from tests.golden.mixer import heads, normal, ours_with_state, torchs

D, H, K, LAYER, LAYERS = 12, 2, 6, 1, 4


def inputs(rng):
    weights = normal(
        rng,
        qkv_proj__weight=(3 * H * K, D),
        output_gate__weight=(H * K, D),
        out_proj__weight=(D, H * K),
        norm__weight=(H * K,),
    )
    return {"x": rng.normal(size=(1, 40, D)), **weights}


def independent(x, **weights):
    from transformers.models.minimax.configuration_minimax import MiniMaxConfig
    from transformers.models.minimax.modeling_minimax import MiniMaxCache, MiniMaxLightningAttention

    config = MiniMaxConfig(hidden_size=D, num_attention_heads=H, head_dim=K, num_hidden_layers=LAYERS, block_size=16)
    module, cache = MiniMaxLightningAttention(config, LAYER), MiniMaxCache()
    given = weights | dict(module.named_buffers())
    y, _ = torchs(module, given, x, position_embeddings=None, attention_mask=None, cache=cache)
    return {"y": y, "state": cache.get_linear_cache(LAYER)}


def ours(x, **w):
    qkv = jnp.moveaxis(w["qkv_proj.weight"].reshape(H, 3, K, D), -1, 0)
    parameters = {f"qkv.{name}.kernel": qkv[:, :, i] for i, name in enumerate("qkv")} | {
        "qkv.o.kernel": w["out_proj.weight"].T.reshape(H, K, D),
        "gate.kernel": heads(w["output_gate.weight"], H, K),
        "norm.weight": w["norm.weight"],
    }
    layer = LayerInfo(index=LAYER, count=LAYERS)
    y, state = ours_with_state(Lightning(num_heads=H, head_dim=K), D, x, parameters, layer=layer)
    return {"y": y, "state": state}
