"""Random inputs for the recurrence, of every transition, shared by its tests."""

import jax.numpy as jnp
import numpy as np

from effarch.ops.recurrence import Constant, Delta, Diagonal, DiagonalPlusRankOne, Scalar

TRANSITIONS = ("constant", "scalar", "diagonal", "delta", "delta_scalar", "delta_diagonal", "rank_one")

#: log-decays seen in real models, and worse (-316 per token was measured)
SWEEP = (0.0, -1e-8, -1e-4, -0.7, -5.0, -20.0, -88.0, -104.0, -316.0, -1e4)


def unit(x):
    return x / np.sqrt((x * x).sum(-1, keepdims=True) + 1e-6)


def log_decays(rng, shape, style="random"):
    """Natural-log decays <= 0: ``random`` mixes magnitudes per row, so that slow and fast heads meet."""
    if style == "random":
        scale = 10.0 ** rng.uniform(-3, 1, size=(shape[0], 1, *shape[2:]))
        return -rng.gamma(1.0, 1.0, size=shape) * scale
    raise ValueError(style)


def make(name, rng, *, batch=2, time=37, heads=4, q_heads=None, k_heads=None, width=8, width_v=6, dtype=np.float32):
    """``(q, k, v, transition, state)`` as numpy-backed arrays of ``dtype``."""
    q_heads, k_heads = q_heads or heads, k_heads or heads

    def cast(x):
        return jnp.asarray(np.asarray(x, dtype))

    q = rng.normal(size=(batch, time, q_heads, width)) * width**-0.5
    k = rng.normal(size=(batch, time, k_heads, width))
    k = unit(k) if name.startswith("delta") else k * width**-0.5
    v = rng.normal(size=(batch, time, heads, width_v))
    state = rng.normal(size=(batch, heads, width, width_v))
    per_token, per_channel = (batch, time, heads), (batch, time, heads, width)
    beta = 2 * rng.uniform(size=per_token)
    if name == "constant":
        transition = Constant(cast(-(10.0 ** rng.uniform(-3, 0.5, size=heads))))
    elif name == "scalar":
        transition = Scalar(cast(log_decays(rng, per_token)))
    elif name == "diagonal":
        transition = Diagonal(cast(log_decays(rng, per_channel)))
    elif name == "delta":
        transition = Delta(cast(beta))
    elif name == "delta_scalar":
        transition = Delta(cast(beta), cast(log_decays(rng, per_token)))
    elif name == "delta_diagonal":
        transition = Delta(cast(beta), cast(log_decays(rng, per_channel)))
    else:
        r = unit(rng.normal(size=(batch, time, k_heads, width)))
        p = -r * rng.uniform(size=r.shape)
        transition = DiagonalPlusRankOne(cast(log_decays(rng, per_channel)), cast(p), cast(r))
    return cast(q), cast(k), cast(v), transition, cast(state)


def random_segments(rng, batch, time):
    """Documents of random lengths (some of one token), padding left, right, between and inside of them."""
    ids = np.zeros((batch, time), np.int32)
    for row in ids:
        style, t, document = rng.integers(5), 0, rng.integers(1, 5)
        if style == 0:  # one document, no padding
            row[:] = 1
            continue
        if style == 1:  # all padding
            continue
        while t < time:
            length = int(rng.integers(1, max(2, time // 2)))
            row[t : t + length] = document
            t += length + int(rng.integers(0, 4)) * int(rng.integers(2))
            document += 1
        row[rng.random(time) < 0.1] = 0
    return ids
