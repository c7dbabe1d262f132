"""Token and channel mixing of MLP-Mixer: transformers, PatchTSMixer without its gates, whose layer is that of MLP-Mixer.

It takes several series at once, here one; its hidden layers are a multiple of their inputs, and its gelu has erf.
"""

import jax.numpy as jnp
from flax import nnx

from effarch.mixers import LayerInfo
from effarch.mixers.base import Context
from effarch.mixers.gelu_mlp import GeluMLP
from effarch.mixers.mlp_mixer import MLPMixer
from effarch.models.block import Block, BlockConfig

BATCH, TIME, WIDTH, TIMES = 2, 14, 12, 2
EPS = 1e-5


def inputs(rng):
    return {"x": rng.normal(size=(BATCH, TIME, WIDTH))}


def weights(rng):
    made = {}
    for name, width in (("token", TIME), ("channel", WIDTH)):
        made[f"{name}_up"] = rng.normal(size=(width, TIMES * width)) / width**0.5
        made[f"{name}_down"] = rng.normal(size=(TIMES * width, width)) / (TIMES * width) ** 0.5
        made[f"{name}_up_bias"], made[f"{name}_down_bias"] = rng.normal(size=TIMES * width), rng.normal(size=width)
        made[f"{name}_gain"], made[f"{name}_shift"] = rng.normal(size=WIDTH), rng.normal(size=WIDTH)
    return made


def independent(x, **weights):
    from transformers import PatchTSMixerConfig
    from transformers.models.patchtsmixer.modeling_patchtsmixer import PatchTSMixerLayer

    config = PatchTSMixerConfig(
        context_length=TIME,
        patch_length=1,
        patch_stride=1,
        d_model=WIDTH,
        expansion_factor=TIMES,
        dropout=0.0,
        gated_attn=False,
        norm_mlp="LayerNorm",
        norm_eps=EPS,
        mode="common_channel",
    )
    layer = PatchTSMixerLayer(config)
    state = {}
    for name, place in (("token", "patch_mixer"), ("channel", "feature_mixer")):
        state[f"{place}.norm.norm.weight"] = weights[f"{name}_gain"]
        state[f"{place}.norm.norm.bias"] = weights[f"{name}_shift"]
        for theirs, mine in (("fc1", "up"), ("fc2", "down")):
            state[f"{place}.mlp.{theirs}.weight"] = weights[f"{name}_{mine}"].T
            state[f"{place}.mlp.{theirs}.bias"] = weights[f"{name}_{mine}_bias"]
    layer.load_state_dict(state)
    return {"y": layer(x[:, None])[:, 0]}


def ours(x, **weights):
    config = BlockConfig(
        mixer=MLPMixer(length=TIME, hidden=TIMES * TIME, approximate=False),
        channel=GeluMLP(hidden=TIMES * WIDTH, approximate=False),
    )
    block = Block(config, WIDTH, norm="layer", eps=EPS, layer=LayerInfo(), rngs=nnx.Rngs(0))
    parts = {"token": (block.mixer, block.mixer_norm), "channel": (block.channel, block.channel_norm)}
    for name, (mixer, norm) in parts.items():
        norm.weight[...], norm.bias[...] = (jnp.asarray(weights[f"{name}_{key}"]) for key in ("gain", "shift"))
        for key, linear in (("up", mixer.mlp.up), ("down", mixer.mlp.down)):
            linear.kernel[...] = jnp.asarray(weights[f"{name}_{key}"])
            linear.bias[...] = jnp.asarray(weights[f"{name}_{key}_bias"])
    return {"y": block(x, None, Context.of(BATCH, TIME)[0])[0]}
