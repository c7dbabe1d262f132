"""Our side of every golden case: the same names in, outputs and final states out."""

import jax
import jax.numpy as jnp

from effarch.ops.recurrence import Constant, Delta, Diagonal, DiagonalPlusRankOne, Scalar, linear_recurrence
from effarch.ops.scan import linear_scan


def _scaled(q):
    return q * q.shape[-1] ** -0.5


def _recurrence(q, k, v, transition, state=None, **options):
    o, final = linear_recurrence(q, k, v, transition=transition, state=state, **options)
    return {"o": o, "state": final}


def linear_attention(q, k, v, state):
    return _recurrence(_scaled(q), k, v, Constant(jnp.zeros(v.shape[2])), state)


def retention(q, k, v):
    decay = jnp.log1p(-(2.0 ** (-5.0 - jnp.arange(v.shape[2], dtype=jnp.float32))))
    return {"o": _recurrence(_scaled(q), k, v, Constant(decay))["o"]}


def simple_gla(q, k, v, log_decay, state):
    return _recurrence(_scaled(q), k, v, Scalar(log_decay), state)


def gla(q, k, v, log_decay, state):
    return _recurrence(_scaled(q), k, v, Diagonal(log_decay), state)


def delta_rule(q, k, v, beta, state):
    return _recurrence(_scaled(q), k, v, Delta(beta), state)


def gated_delta_rule(q, k, v, beta, state, log_decay):
    return _recurrence(_scaled(q), k, v, Delta(beta, log_decay), state)


qwen3_next_delta_rule = kimi_delta_attention = gated_delta_rule  # decays per head, and per channel


def rank_one(q, k, v, log_decay, state, r, p):
    return _recurrence(_scaled(q), k, v, DiagonalPlusRankOne(log_decay, p=p, r=r), state)


def gated_delta_product(q, k, v, log_decay, state, beta):
    """Two delta steps a token: it decays before the first, and is read after the second."""
    steps = k.shape[1] // q.shape[1]

    def spread(x, place):
        """One of every ``steps`` steps has ``x``, the others zeros."""
        apart = jnp.zeros((x.shape[0], x.shape[1], steps, *x.shape[2:])).at[:, :, place].set(x)
        return apart.reshape(x.shape[0], -1, *x.shape[2:])

    found = _recurrence(_scaled(spread(q, -1)), k, v, Delta(beta, spread(log_decay, 0)), state)
    return {"o": found["o"][:, steps - 1 :: steps], "state": found["state"]}


def rwkv6(q, k, v, log_decay, state, u):
    found = _recurrence(q, k, v, Diagonal(log_decay), state, read="before")
    own = (q * u[None, None] * k).sum(axis=-1, keepdims=True) * v
    return {"o": found["o"] + own, "state": found["state"]}


def hgrn(x, log_decay):
    h, final = linear_scan((log_decay, x), state=jnp.zeros((x.shape[0], x.shape[2])))
    return {"o": h, "state": final}


def gated_slots(q, k, v, s, log_decay):
    """In the first pass every slot is a head whose value has one channel; in the second slots are the channels of k."""

    def each(x):
        return x.reshape(*x.shape[:2], -1)

    scores = _recurrence(_scaled(q), k, each(s)[..., None], Scalar(each(log_decay)))["o"]
    p = jax.nn.softmax(scores.reshape(s.shape), axis=-1)
    return {"o": _recurrence(p, s, v, Diagonal(log_decay))["o"]}
