"""Latent attention: transformers, DeepSeek-V3's whole module, whose rotation of neighbours is ours of halves with the
channels in another order. Without a state, and over a cache, where other products are taken."""

import jax.numpy as jnp
import numpy as np
from flax import nnx

from effarch.mixers import Context, LayerInfo
from effarch.mixers.mla import MLA

TIME, DIM = 24, 16
CONFIG = MLA(num_heads=4, head_dim=8, shared_dim=4, value_head_dim=6, rank=10, q_rank=12)
HEADS, KEY, SHARED, VALUE, RANK, Q_RANK = 4, 8, 4, 6, 10, 12


def inputs(rng):
    return {"x": rng.normal(size=(2, TIME, DIM))}


def weights(rng):
    shapes = {
        "q_a_proj": (Q_RANK, DIM),
        "q_b_proj": (HEADS * (KEY + SHARED), Q_RANK),
        "kv_a_proj_with_mqa": (RANK + SHARED, DIM),
        "kv_b_proj": (HEADS * (KEY + VALUE), RANK),
        "o_proj": (DIM, HEADS * VALUE),
    }
    found = {name: rng.normal(size=shape) * shape[1] ** -0.5 for name, shape in shapes.items()}
    norms = {"q_a_layernorm": Q_RANK, "kv_a_layernorm": RANK}
    return found | {name: 1 + 0.3 * rng.normal(size=size) for name, size in norms.items()}


def independent(x, **weights):
    import torch
    from transformers import DeepseekV3Config
    from transformers.models.deepseek_v3 import modeling_deepseek_v3 as theirs

    config = DeepseekV3Config(
        hidden_size=DIM,
        num_attention_heads=HEADS,
        num_key_value_heads=HEADS,
        q_lora_rank=Q_RANK,
        kv_lora_rank=RANK,
        qk_nope_head_dim=KEY,
        qk_rope_head_dim=SHARED,
        v_head_dim=VALUE,
        rope_parameters={"rope_type": "default", "rope_theta": 10000.0},
        attn_implementation="eager",
    )
    module = theirs.DeepseekV3Attention(config, 0)
    positions = theirs.DeepseekV3RotaryEmbedding(config)(x, torch.arange(TIME)[None])
    mask = torch.full((TIME, TIME), -torch.inf).triu(1)[None, None]
    parameters = {f"{name}.weight": weight for name, weight in weights.items()}
    y = torch.func.functional_call(module, parameters, (x, positions, mask), strict=True)[0]
    return {"y": y, "over a cache": y}


def ours(x, **weights):
    mixer = CONFIG.make(DIM, layer=LayerInfo(), rngs=nnx.Rngs(0))
    halves = np.concatenate([np.arange(0, SHARED, 2), np.arange(1, SHARED, 2)])
    q = weights["q_b_proj"].T.reshape(Q_RANK, HEADS, KEY + SHARED)
    k, v = jnp.split(weights["kv_b_proj"].T.reshape(RANK, HEADS, KEY + VALUE), [KEY], axis=-1)
    c, r = jnp.split(weights["kv_a_proj_with_mqa"].T, [RANK], axis=-1)
    mixer.q_down.kernel[...] = weights["q_a_proj"].T
    mixer.q.kernel[...] = jnp.concatenate([q[..., :KEY], q[..., KEY:][..., halves]], axis=-1)
    mixer.c.kernel[...], mixer.r.kernel[...] = c, r[:, halves]
    mixer.k.kernel[...], mixer.v.kernel[...] = k, v
    mixer.o.kernel[...] = weights["o_proj"].T.reshape(HEADS, VALUE, DIM)
    mixer.q_norm.weight[...], mixer.c_norm.weight[...] = weights["q_a_layernorm"], weights["kv_a_layernorm"]
    ctx, _ = Context.of(2, TIME)
    return {"y": mixer(x, None, ctx)[0], "over a cache": mixer(x, mixer.init_state(2, TIME), ctx)[0]}
