"""The whole Mamba-2 mixer: transformers, in torch, two groups, chunks of 16, with its states."""

import jax.numpy as jnp

from effarch.mixers.mamba2 import Mamba2
from tests.golden.modules import call, put

DIM, HEADS, WIDTH, STATE, GROUPS, TAPS = 8, 4, 4, 6, 2, 4
INNER, CONV = HEADS * WIDTH, HEADS * WIDTH + 2 * GROUPS * STATE


def inputs(rng):
    return {"x": rng.normal(size=(1, 40, DIM))}


def weights(rng):
    return {
        "in_proj.weight": rng.normal(size=(INNER + CONV + HEADS, DIM)) * DIM**-0.5,
        "conv1d.weight": rng.normal(size=(CONV, 1, TAPS)) * 0.5,
        "conv1d.bias": rng.normal(size=CONV) * 0.3,
        "dt_bias": rng.normal(size=HEADS),
        "A_log": rng.normal(size=HEADS),
        "D": rng.normal(size=HEADS),
        "norm.weight": 1 + 0.3 * rng.normal(size=INNER),
        "out_proj.weight": rng.normal(size=(DIM, INNER)) * INNER**-0.5,
    }


def independent(x, **weights):
    from transformers import DynamicCache, Mamba2Config
    from transformers.models.mamba2.modeling_mamba2 import Mamba2Mixer

    config = Mamba2Config(
        hidden_size=DIM,
        num_heads=HEADS,
        head_dim=WIDTH,
        state_size=STATE,
        n_groups=GROUPS,
        conv_kernel=TAPS,
        chunk_size=16,
        num_hidden_layers=1,
    )
    module = Mamba2Mixer(config, 0)
    module.load_state_dict(weights)
    cache = DynamicCache(config=config)
    y = module(x, cache=cache)
    conv = cache.get_conv_state(0, state_idx=0)[..., 1 - TAPS :]  # it keeps one input more than it needs
    return {"y": y, "state": cache.get_recurrent_state(0, state_idx=0), "conv": conv}


def ours(x, **weights):
    def load(mixer):
        sizes = (INNER, INNER, GROUPS * STATE, GROUPS * STATE, HEADS)
        rows = jnp.split(weights["in_proj.weight"], [sum(sizes[: i + 1]) for i in range(4)])
        for linear, weight in zip((mixer.z, mixer.x, mixer.b, mixer.c, mixer.dt), rows, strict=True):
            put(linear.kernel, weight, transpose=True)
        put(mixer.conv.weight, weights["conv1d.weight"][:, 0], transpose=True)
        put(mixer.o.kernel, weights["out_proj.weight"], transpose=True)
        for target, name in (
            (mixer.conv.bias, "conv1d.bias"),
            (mixer.dt_bias, "dt_bias"),
            (mixer.log_rate, "A_log"),
            (mixer.skip, "D"),
            (mixer.norm.weight, "norm.weight"),
        ):
            put(target, weights[name])

    y, (state, conv) = call(Mamba2(num_heads=HEADS, head_dim=WIDTH, state_dim=STATE, num_groups=GROUPS), x, load)
    return {"y": y, "state": jnp.swapaxes(state, -1, -2), "conv": jnp.swapaxes(conv, -1, -2)}
