"""RWKV-7's time mix in a layer that is not the first: the authors' ``rwkv`` package. Their state is S^T."""

import jax.numpy as jnp

from effarch.mixers import Context
from tests.golden import rwkv
from tests.golden.models.rwkv7 import config, weight


def inputs(rng):
    x, value_first = rng.normal(size=(2, 1, 40, rwkv.DIM))
    return {"x": x, "value_first": value_first, "state": rng.normal(size=(1, *rwkv.HEAD, rwkv.HEAD[1]))}


def weights(rng):
    return rwkv.time_mix_weights(config, weight)


def independent(x, value_first, state, **w):
    import torch

    flat = {name: tensor.squeeze() for name, tensor in w.items()}
    mixes = [flat[f"x_{name}"] for name in "rwkvag"]
    low_rank = [flat[name] for name in ("w0", "w1", "w2", "a0", "a1", "a2", "v0", "v1", "v2", "g1", "g2")]
    keys = [flat["k_k"], flat["k_a"], flat["r_k"].flatten()]
    squares = [w[f"{name}.weight"].T for name in ("receptance", "key", "value", "output")]
    y, _, s, _ = rwkv.package(goose=True).RWKV_x070_TMix_seq(
        1, *rwkv.HEAD, x[0], torch.zeros(rwkv.DIM), value_first[0], state[0].transpose(-1, -2),
        *mixes, *low_rank, *keys, *squares, w["ln_x.weight"], w["ln_x.bias"],
    )  # fmt: skip
    return {"y": y[None], "state": s.transpose(-1, -2)[None]}


def ours(x, value_first, state, **w):
    mixer = rwkv.time_mix(config, w)
    ctx, _ = Context.of(*x.shape[:2])
    ctx = ctx.share(value_first=value_first.reshape(1, -1, *rwkv.HEAD))
    y, (state, _), _ = mixer(x, (state, jnp.zeros((1, rwkv.DIM))), ctx)
    return {"y": y, "state": state}
