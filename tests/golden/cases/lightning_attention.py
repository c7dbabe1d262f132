"""The whole lightning attention mixer: transformers, MiniMax-01, layer 1 of 4."""

import jax.numpy as jnp

from effarch.mixers import LayerInfo
from effarch.mixers.lightning import Lightning
from tests.golden.modules import call, put

DIM, HEADS, WIDTH, LAYER, LAYERS = 16, 2, 6, 1, 4


def inputs(rng):
    return {"x": rng.normal(size=(1, 40, DIM))}


def weights(rng):
    wide = HEADS * WIDTH
    shapes = {"qkv_proj": (3 * wide, DIM), "output_gate": (wide, DIM), "out_proj": (DIM, wide)}
    found = {name: rng.normal(size=shape) * shape[1] ** -0.5 for name, shape in shapes.items()}
    return {**found, "norm": 1 + 0.3 * rng.normal(size=wide)}


def independent(x, **weights):
    from transformers.models.minimax.configuration_minimax import MiniMaxConfig
    from transformers.models.minimax.modeling_minimax import MiniMaxCache, MiniMaxLightningAttention

    config = MiniMaxConfig(
        hidden_size=DIM, num_attention_heads=HEADS, head_dim=WIDTH, num_hidden_layers=LAYERS, block_size=16
    )
    module = MiniMaxLightningAttention(config, LAYER)
    module.load_state_dict({f"{name}.weight": x for name, x in weights.items()}, strict=False)
    cache = MiniMaxCache()
    o, _ = module(x, position_embeddings=None, attention_mask=None, cache=cache)
    return {"y": o, "state": cache.get_linear_cache(LAYER)}


def ours(x, qkv_proj, output_gate, out_proj, norm):
    def load(mixer):
        packed = qkv_proj.reshape(HEADS, 3, WIDTH, DIM)
        for i, linear in enumerate((mixer.qkv.q, mixer.qkv.k, mixer.qkv.v)):
            put(linear.kernel, jnp.moveaxis(packed[:, i], -1, 0))
        put(mixer.gate.kernel, output_gate, transpose=True)
        put(mixer.qkv.o.kernel, out_proj, transpose=True)
        put(mixer.norm.weight, norm)

    config = Lightning(num_heads=HEADS, head_dim=WIDTH)
    y, state = call(config, x, load, layer=LayerInfo(index=LAYER, count=LAYERS))
    return {"y": y, "state": state}
