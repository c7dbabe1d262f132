"""The whole Mamba-2 mixer, two groups, chunks of 16, and its states: transformers, in torch."""

import jax.numpy as jnp

from effarch.mixers.mamba2 import Mamba2
from tests.golden.mixer import heads, normal, ours_with_state, torchs

D, H, P, N, G, TAPS = 8, 4, 4, 6, 2, 4
INNER, CONV = H * P, H * P + 2 * G * N


def inputs(rng):
    weights = normal(
        rng,
        in_proj__weight=(INNER + CONV + H, D),
        conv1d__weight=(CONV, 1, TAPS),
        conv1d__bias=(CONV,),
        dt_bias=(H,),
        A_log=(H,),
        D=(H,),
        norm__weight=(INNER,),
        out_proj__weight=(D, INNER),
    )
    return {"x": rng.normal(size=(1, 40, D)), **weights}


def independent(x, **weights):
    from transformers import DynamicCache, Mamba2Config
    from transformers.models.mamba2.modeling_mamba2 import Mamba2Mixer

    config = Mamba2Config(
        hidden_size=D,
        num_heads=H,
        head_dim=P,
        state_size=N,
        n_groups=G,
        conv_kernel=TAPS,
        chunk_size=16,
        num_hidden_layers=1,
    )
    cache = DynamicCache(config=config)
    y = torchs(Mamba2Mixer(config, 0), weights, x, cache=cache)
    conv = cache.get_conv_state(0, state_idx=0)[..., 1 - TAPS :]  # it keeps one input more than it needs
    return {"y": y, "state": cache.get_recurrent_state(0, state_idx=0), "conv": conv}


def ours(x, **w):
    sizes = (INNER, INNER, G * N, G * N, H)
    z, u, b, c, dt = jnp.split(w["in_proj.weight"], [sum(sizes[: i + 1]) for i in range(4)])
    parameters = {
        "z.kernel": heads(z, H, P),
        "x.kernel": heads(u, H, P),
        "b.kernel": heads(b, G, N),
        "c.kernel": heads(c, G, N),
        "dt.kernel": dt.T,
        "dt_bias": w["dt_bias"],
        "log_rate": w["A_log"],
        "skip": w["D"],
        "conv.weight": w["conv1d.weight"][:, 0].T,
        "conv.bias": w["conv1d.bias"],
        "norm.weight": w["norm.weight"].reshape(G, -1),
        "o.kernel": w["out_proj.weight"].T.reshape(H, P, D),
    }
    config = Mamba2(num_heads=H, head_dim=P, state_dim=N, num_groups=G)
    y, (state, conv) = ours_with_state(config, D, x, parameters)
    return {"y": y, "state": jnp.swapaxes(state, -1, -2), "conv": jnp.swapaxes(conv, -1, -2)}
