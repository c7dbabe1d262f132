"""Mixing matrices: M v is what the operation makes of v, whatever v is; who has one, and who says that it has none."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from effarch.mixers import Context, LayerInfo
from effarch.ops import mixing
from effarch.ops.attention import forgetting_attention, softmax_attention, window_attention
from effarch.ops.features import signed_exponentials
from effarch.ops.normalised import normalised_attention
from effarch.ops.recurrence import Constant, Delta, Diagonal, DiagonalPlusRankOne, Scalar, linear_recurrence
from tests.conformance.harness import MIXERS, Subject
from tests.ops.recurrence_cases import random_segments
from tests.tolerances import TOL, assert_close

B, T, H, K, V = 2, 20, 4, 8, 6


def calls(x, ids):
    """Every marked operation, packed, with few key heads."""
    q, k, v, decay, channels, p = (x[name] for name in ("q", "k", "v", "decay", "channels", "p"))
    wide = jnp.repeat(v, 2, axis=2)
    transitions = {
        "constant": Constant(decay[0, 0]),
        "scalar": Scalar(decay),
        "diagonal": Diagonal(channels),
        "delta": Delta(jnp.exp(decay), decay),
        "rank one": DiagonalPlusRankOne(channels, -0.5 * p, p),
    }
    made = {
        name: (lambda t=t: linear_recurrence(q, k, wide, transition=t, segment_ids=ids)[0])
        for name, t in transitions.items()
    }
    made["softmax"] = lambda: softmax_attention(q, k, v, segment_ids=ids)
    made["window"] = lambda: window_attention(q, k, v, window=5, sinks=2, q_sink=q[:, ::-1], segment_ids=ids)
    made["forgetting"] = lambda: forgetting_attention(q, k, v, decay, None, ids)[0]
    maps = signed_exponentials(3 * q), signed_exponentials(3 * k)
    made["normalised"] = lambda: normalised_attention(*maps, wide, segment_ids=ids)[0]
    return made, {"softmax": v, "window": v, "forgetting": v}, wide


@jax.jit
def matrices(x, ids):
    """By name: M, M v, and o."""
    made, narrow, wide = calls(x, ids)
    found = {}
    for name, call in made.items():
        with mixing.watch() as seen:
            o = call()
        ((matrix, weights),) = seen
        v = narrow.get(name, wide)
        v = jnp.repeat(v, H // v.shape[2], axis=2)
        found[name] = (matrix, weights, jnp.einsum("bhts,bshv->bthv", matrix, v, precision="highest"), o)
    return found


def test_the_matrix_times_the_values_is_the_output():
    """Rows of what is a softmax sum to one; nothing crosses documents, and padding neither reads nor is read."""
    rng = np.random.default_rng(0)
    x = {name: rng.normal(size=(B, T, 2 if name in "kv" else H, V if name == "v" else K)) for name in "qkv"}
    x["decay"], x["channels"] = -rng.random((B, T, H)), -rng.random((B, T, H, K))
    p = rng.normal(size=(B, T, H, K))
    x["p"] = p / np.linalg.norm(p, axis=-1, keepdims=True)
    x = {name: y.astype(np.float32) for name, y in x.items()}
    ids = np.asarray(random_segments(np.random.default_rng(4), B, T), np.int32)
    real = ids > 0
    run = np.asarray(jax.jit(lambda ids: Context.of(B, T, segment_ids=ids)[0].segments.run)(ids))
    sees = (run[:, :, None] == run[:, None]) & real[:, None] & np.tri(T, dtype=bool)
    for name, (matrix, weights, read, o) in matrices(x, ids).items():
        assert_close(read, o, TOL.f32_forward, name)
        assert matrix.shape == (B, H, T, T)
        assert (np.asarray(matrix)[~np.broadcast_to(sees[:, None], matrix.shape)] == 0).all(), name
        assert bool(weights) == (name in ("softmax", "window", "forgetting", "normalised"))
        if weights:
            assert (np.asarray(matrix) >= 0).all()
            assert_close(np.asarray(matrix).sum(axis=-1), np.broadcast_to(real[:, None], (B, H, T)), TOL.f32_forward)


WEIGHTS = {
    *("softmax_attention", "encoder_attention", "sliding_window", "window_linear", "forgetting_attention", "mla"),
    *("linear_attention", "hedgehog", "t2r", "performer", "cosformer", "based", "rebased"),
}
OTHERS = {
    *("retnet", "lightning", "gated_retention", "gla", "hgrn2", "mamba2", "deltanet", "gated_deltanet", "kda", "rwkv7"),
}


@pytest.mark.parametrize("name", MIXERS)
def test_who_has_one(name):
    """Whoever adds terms of its own to an operation must say so: a new mixer that shows up here is to be looked at."""
    subject = Subject.of("mixer", name)
    time = subject.config.length if subject.config.fixed_length else 6

    def abstract(weights):
        def matrix():
            mixer = subject.config.make(subject.dim, layer=LayerInfo(), rngs=nnx.Rngs(0))
            x = jnp.zeros((1, time, subject.dim), jnp.float32)
            return mixer.mixing_matrix(x, Context.of(1, time)[0], weights=weights)

        return jax.eval_shape(matrix)

    if name in WEIGHTS | OTHERS:
        assert abstract(name in WEIGHTS).shape[2:] == (time, time)
    if name not in WEIGHTS | OTHERS or name == "gla":
        with pytest.raises(ValueError, match=r"mixer: expected one with .*, got \w+"):
            abstract(name == "gla")


@jax.jit
def _mamba2(parameters, x):
    subject = Subject.of("mixer", "mamba2")
    mixer = nnx.merge(subject.graph, parameters)
    ctx = Context.of(*x.shape[:2])[0]
    (u, b, c), _ = mixer.conv.together([mixer.x(x), mixer.b(x), mixer.c(x)], None, None)
    return mixer.mixing_matrix(x, ctx), u, b, c, mixer.step(x)


def test_of_mamba2_with_its_steps_and_its_skip():
    """By the equations, token by token in float64: o_t = S_t^T c_t + D u_t."""
    subject = Subject.of("mixer", "mamba2")
    parameters = subject.parameters()
    matrix, u, b, c, step = (np.asarray(y, np.float64) for y in _mamba2(parameters, subject.input(time=9)))
    rate, skip = (np.asarray(parameters[name][...], np.float64) for name in ("log_rate", "skip"))
    read = np.einsum("bhts,bshv->bthv", matrix, u)
    for row in range(2):
        for head in range(4):
            s, group = 0.0, head // 2
            for t in range(9):
                dt = step[row, t, head]
                s = np.exp(-np.exp(rate[head]) * dt) * s + dt * np.outer(b[row, t, group], u[row, t, head])
                wanted = s.T @ c[row, t, group] + skip[head] * u[row, t, head]
                assert_close(read[row, t, head], wanted, TOL.f32_forward)
