"""A window of softmax and linear attention beyond it, against the sums of the paper, token by token in float64."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from effarch.ops.attention import RingCache
from effarch.ops.features import Features, signed_exponentials, softmax_pair
from effarch.ops.normalised import initial_state
from effarch.ops.segments import as_segments
from effarch.ops.window_linear import window_linear_attention
from tests.ops.recurrence_cases import random_segments
from tests.tolerances import TOL, assert_close

B, T, H, HK, K, WINDOW, SINKS = 2, 24, 4, 2, 4, 5, 2
MAPS = {
    "softmax": lambda x, positions: Features(softmax_pair(x)),
    "exp": lambda x, positions: signed_exponentials(8 * x),  # e^40: without its log-scale it would not last
}


@partial(jax.jit, static_argnums=(0, 1))
def attend(name, form, q, k, v, q_sink, share, ids, state=None):
    phi = MAPS[name]
    length = None if state is None else state[0].length
    segments = as_segments(ids, length=length)
    options = {"phi_q": phi, "phi_k": phi, "log_share": share, "window": WINDOW, "sinks": SINKS, "q_sink": q_sink}
    options |= {"positions": segments.position, "segments": segments, "state": state, "form": form}
    return window_linear_attention(q, k, v, **options)


def naive(name, q, k, v, q_sink, share, ids):
    """Every pair by itself; each token is near or far, never both."""
    o = np.zeros((B, T, H, K))

    def phi(x):
        if name == "exp":
            return np.concatenate([np.exp(8 * x), np.exp(-8 * x)])
        up, down = np.exp(x), np.exp(-x)
        return np.concatenate([up / up.sum(), down / down.sum()])

    for b in range(B):
        for h in range(H):
            seen, current = [], None
            for t in range(T):
                if ids[b, t] == 0:
                    continue
                if ids[b, t] != current:
                    seen, current = [], ids[b, t]
                seen.append(t)
                p, weights = len(seen) - 1, []
                for j, s in enumerate(seen):
                    key = k[b, s, h // 2]
                    if j > p - WINDOW:
                        weights.append(np.exp(q[b, t, h] @ key / np.sqrt(K)))
                    elif j < SINKS:
                        weights.append(np.exp(q_sink[b, t, h] @ key / np.sqrt(K)))
                    else:
                        weights.append(np.exp(share[h]) * (phi(q[b, t, h]) @ phi(key)))
                weights = np.asarray(weights)
                o[b, t, h] = weights @ v[b, seen, h // 2] / weights.sum()
    return o


def inputs():
    rng = np.random.default_rng(0)
    q, k, v, q_sink = (rng.normal(size=(B, T, h, K)).astype(np.float32) for h in (H, HK, HK, H))
    share = rng.normal(size=H).astype(np.float32)
    return q, k, v, q_sink, share, np.asarray(random_segments(np.random.default_rng(7), B, T), np.int32)


@pytest.mark.parametrize("name", MAPS)
def test_one_normalised_sum(name):
    """Packed documents, padding, grouped heads; and with a state, in two pieces, the same."""
    *given, ids = inputs()
    wanted = naive(name, *(x.astype(np.float64) for x in given), ids)
    real = (ids > 0)[:, :, None, None]
    o, _ = attend(name, "chunkwise", *given, ids)
    assert_close(np.asarray(o) * real, wanted, TOL.f32_forward)
    ones = np.ones_like(ids)
    whole = naive(name, *(x.astype(np.float64) for x in given), ones)
    ring = RingCache.init(B, WINDOW, SINKS, HK, K, K, jnp.float32)
    state, parts = (ring, initial_state(B, H, HK, 2 * K, K, log_scaled=name == "exp")), []
    for piece in (slice(0, T // 2), slice(T // 2, T)):
        q, k, v, q_sink = (x[:, piece] for x in given[:4])
        o, state = attend(name, "chunkwise", q, k, v, q_sink, given[4], ones[:, piece], state)
        parts.append(np.asarray(o))
    assert_close(np.concatenate(parts, axis=1), whole, TOL.f32_forward)
