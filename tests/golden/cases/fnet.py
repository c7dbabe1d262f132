"""A layer of FNet: transformers. Ours is put together from its mixers, normalised after each sum as the paper does."""

import jax.numpy as jnp
from flax import nnx

from effarch.mixers import Context, LayerInfo
from effarch.mixers.fnet import FNet
from effarch.mixers.gelu_mlp import GeluMLP
from effarch.nn.norm import LayerNorm

BATCH, TIME, WIDTH, HIDDEN = 2, 15, 12, 20
EPS = 1e-5


def inputs(rng):
    return {"x": rng.normal(size=(BATCH, TIME, WIDTH))}


def weights(rng):
    norms = {f"{kind}{i}": rng.normal(size=WIDTH) for i in (1, 2) for kind in ("gain", "shift")}
    up, down = rng.normal(size=(WIDTH, HIDDEN)) / WIDTH**0.5, rng.normal(size=(HIDDEN, WIDTH)) / HIDDEN**0.5
    biases = {"up_bias": rng.normal(size=HIDDEN), "down_bias": rng.normal(size=WIDTH)}
    return {**norms, "up": up, "down": down, **biases}


def independent(x, gain1, shift1, gain2, shift2, up, down, up_bias, down_bias):
    from transformers import FNetConfig
    from transformers.models.fnet.modeling_fnet import FNetLayer

    config = FNetConfig(hidden_size=WIDTH, intermediate_size=HIDDEN, hidden_dropout_prob=0.0, layer_norm_eps=EPS)
    layer = FNetLayer(config)
    layer.load_state_dict(
        {
            "fourier.output.LayerNorm.weight": gain1,
            "fourier.output.LayerNorm.bias": shift1,
            "intermediate.dense.weight": up.T,
            "intermediate.dense.bias": up_bias,
            "output.dense.weight": down.T,
            "output.dense.bias": down_bias,
            "output.LayerNorm.weight": gain2,
            "output.LayerNorm.bias": shift2,
        }
    )
    return {"y": layer(x)[0]}


def ours(x, gain1, shift1, gain2, shift2, up, down, up_bias, down_bias):
    rngs, layer = nnx.Rngs(0), LayerInfo()
    ctx, _ = Context.of(BATCH, TIME)
    fourier = FNet().make(WIDTH, layer=layer, rngs=rngs)
    channel = GeluMLP(hidden=HIDDEN).make(WIDTH, layer=layer, rngs=rngs)
    for linear, kernel, bias in ((channel.mlp.up, up, up_bias), (channel.mlp.down, down, down_bias)):
        linear.kernel[...], linear.bias[...] = jnp.asarray(kernel), jnp.asarray(bias)
    for mixer, gain, shift in ((fourier, gain1, shift1), (channel, gain2, shift2)):
        norm = LayerNorm(WIDTH, eps=EPS)
        norm.weight[...], norm.bias[...] = jnp.asarray(gain), jnp.asarray(shift)
        x = norm(x + mixer(x, None, ctx)[0])
    return {"y": x}
