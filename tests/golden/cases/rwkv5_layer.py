"""RWKV-5's time mix behind its norm, added to the stream: the authors' ``rwkv`` package."""

import jax.numpy as jnp

from effarch.mixers import Context
from effarch.nn.norm import LayerNorm
from tests.golden import rwkv
from tests.golden.models.rwkv5 import config, weight


def inputs(rng):
    return {"x": rng.normal(size=(1, 40, rwkv.DIM)), "state": rng.normal(size=(1, *rwkv.HEAD, rwkv.HEAD[1]))}


def weights(rng):
    return rwkv.time_mix_weights(config, weight)


def independent(x, state, **w):
    import torch

    x, zero = x[0], torch.zeros(rwkv.DIM)
    mixes = [w[f"time_mix_{name}"].flatten() for name in "kvrg"]
    decay = torch.exp(-torch.exp(w["time_decay"]))[..., None]
    squares = [w[f"{name}.weight"].T for name in ("key", "value", "receptance", "gate", "output")]
    quantised = [x] * 20  # of no use in float32
    y, _, s = rwkv.package(goose=False).RWKV.att_seq_v5_2(
        None, x, zero, state[0], torch.ones(rwkv.DIM), zero, w["ln_x.weight"], w["ln_x.bias"],
        *mixes, decay, w["time_faaaa"][..., None], *squares, *quantised,
    )  # fmt: skip
    return {"y": y[None], "state": s[None]}


def ours(x, state, **w):
    mixer = rwkv.time_mix(config, w)
    ctx, _ = Context.of(*x.shape[:2])
    y, (state, _), _ = mixer(LayerNorm(rwkv.DIM)(x), (state, jnp.zeros((1, rwkv.DIM))), ctx)
    return {"y": x + y, "state": state}
