"""RWKV-4's average against its quadratic definition in float64, values and gradients."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from effarch import axes
from effarch.ops.decayed_average import Pair, decayed_average
from effarch.ops.segments import as_segments
from tests.ops.recurrence_cases import SWEEP, random_segments
from tests.ops.test_context_parallel import gathered, rules
from tests.tolerances import TOL, assert_close

B, T, D = 2, 150, 6


def quadratic(k, v, log_decay, bonus, state, run, same):
    """Softmax over all earlier tokens of a document, its carried pair and the token itself.

    ``same [B, T, T]``: j comes before i in one document. Exponents count the tokens between, padding left out.
    """
    real = (run > 0).astype(k.dtype)
    place = jnp.cumsum(real, axis=1)  # real tokens up to and with t
    between = place[:, :, None] - place[:, None, :] - 1
    exponent = between[..., None] * log_decay[None, None, None] + k[:, None]
    exponent = jnp.where(same[..., None], exponent, -jnp.inf)
    first = (place - 1)[..., None] * log_decay[None, None] + state.top[:, None]
    first = jnp.where((run == 1)[..., None], first, -jnp.inf)
    own = k + bonus[None, None]
    top = jax.lax.stop_gradient(jnp.maximum(jnp.maximum(exponent.max(axis=2), first), own))
    weight, carried, here = jnp.exp(exponent - top[:, :, None]), jnp.exp(first - top), jnp.exp(own - top)
    num = (weight * v[:, None]).sum(axis=2) + carried * state.num[:, None] + here * v
    den = weight.sum(axis=2) + carried * state.den[:, None] + here
    return jnp.where(real[..., None] > 0, num / den, 0.0)


def arrays(rng, scale):
    log_decay = rng.choice(SWEEP, size=D) * rng.uniform(size=D)
    state = (rng.normal(size=(B, D)), rng.uniform(0.1, 2, size=(B, D)), scale * rng.normal(size=(B, D)))
    return scale * rng.normal(size=(B, T, D)), rng.normal(size=(B, T, D)), log_decay, rng.normal(size=D), *state


def compare(fast, true, given, rng):
    """Values and gradients of float32 and float64."""
    values, pull = jax.vjp(jax.jit(fast), *(jnp.asarray(x, jnp.float32) for x in given))
    cotangent = rng.normal(size=values.shape).astype(np.float32)
    gradients = pull(jnp.asarray(cotangent))
    with jax.enable_x64(True):
        exact, pull = jax.vjp(jax.jit(true), *(jnp.asarray(x, jnp.float64) for x in given))
        true_gradients = pull(jnp.asarray(cotangent, jnp.float64))
    assert_close(values, exact, TOL.f32_forward)
    for name, a, b in zip(("k", "v", "log_decay", "u", "num", "den", "top"), gradients, true_gradients, strict=True):
        assert_close(a, b, TOL.f32_grad, name)


@pytest.mark.parametrize("chunk_size", [1, 64])
@pytest.mark.parametrize("seed", range(2))
def test_it_is_the_quadratic_average(seed, chunk_size):
    """Documents and padding anywhere, a carried pair, decays from none to all at once."""
    rng = np.random.default_rng(seed)
    ids = random_segments(rng, B, T)
    run = as_segments(ids).run
    earlier = np.tril(np.ones((T, T), bool), -1)[None]
    same = earlier & (run[:, :, None] == run[:, None, :]) & (run > 0)[:, None, :]

    def fast(k, v, log_decay, bonus, *state):
        return decayed_average(
            k, v, log_decay=log_decay, bonus=bonus, state=Pair(*state), segment_ids=ids, chunk_size=chunk_size
        )[0]

    def true(k, v, log_decay, bonus, *state):
        return quadratic(k, v, log_decay, bonus, Pair(*state), run, same)

    compare(fast, true, arrays(rng, 1.0), rng)


def test_the_state_carries_values_and_gradients():
    """In pieces it is the whole; the gradient of the first piece comes through the pair that it leaves."""
    rng = np.random.default_rng(5)
    given = arrays(rng, 3.0)

    def pieces(k, v, log_decay, bonus, *state):
        state, found = Pair(*state), []
        for cut in (slice(0, 70), slice(70, 71), slice(71, T)):
            o, state = decayed_average(k[:, cut], v[:, cut], log_decay=log_decay, bonus=bonus, state=state)
            found.append(o)
        return jnp.concatenate(found, axis=1)

    def true(k, v, log_decay, bonus, *state):
        earlier = jnp.broadcast_to(jnp.tril(jnp.ones((T, T), bool), -1), (B, T, T))
        return quadratic(k, v, log_decay, bonus, Pair(*state), jnp.ones((B, T), jnp.int32), earlier)

    compare(pieces, true, given, rng)


@pytest.mark.parametrize("scale", [1e2, 1e4])
def test_huge_keys(scale):
    """Keys whose exponentials no float holds: the largest wins, nothing overflows."""
    rng = np.random.default_rng(6)
    k, v, log_decay, bonus, *_ = arrays(rng, scale)
    given = [jnp.asarray(x, jnp.float32) for x in (k, v, log_decay, bonus)]

    def run(k, v, log_decay, bonus):
        return decayed_average(k, v, log_decay=log_decay, bonus=bonus)[0]

    o, pull = jax.vjp(jax.jit(run), *given)
    assert all(jnp.isfinite(g).all() for g in pull(jnp.ones_like(o)))
    with jax.enable_x64(True):
        exact = [jnp.asarray(np.asarray(x), jnp.float64) for x in given]
        earlier = jnp.broadcast_to(jnp.tril(jnp.ones((T, T), bool), -1), (B, T, T))
        empty = Pair.empty((B, D), jnp.float64)
        true = quadratic(*exact, empty, jnp.ones((B, T), jnp.int32), earlier)
    assert_close(o, true, TOL.f32_forward)


def test_a_sequence_split_over_devices_is_whole():
    """What is gathered does not depend on T."""
    rng = np.random.default_rng(7)
    k, v, log_decay, bonus, *state = (jnp.asarray(x, jnp.float32) for x in arrays(rng, 3.0))
    ids = random_segments(np.random.default_rng(1), B, 64)
    given = (k[:, :64], v[:, :64], log_decay, bonus, *state)

    def average(k, v, log_decay, bonus, *state):
        state = Pair(*state)
        return decayed_average(k, v, log_decay=log_decay, bonus=bonus, state=state, segment_ids=ids, chunk_size=8)

    @partial(jax.jit, static_argnums=0)
    def run(table, *given):
        with axes.rules(table):
            (o, after), pull = jax.vjp(average, *given)
            return o, after, pull((v[:, :64], jax.tree.map(jnp.ones_like, after)))

    whole, split = run(None, *given), run(rules(), *given)
    for x, y in zip(jax.tree.leaves(split[:2]), jax.tree.leaves(whole[:2]), strict=True):
        assert_close(x, y, TOL.f32_forward)
    for x, y in zip(jax.tree.leaves(split[2]), jax.tree.leaves(whole[2]), strict=True):
        assert_close(x, y, TOL.f32_grad)

    def exchanged(time):
        return gathered(lambda k: decayed_average(k, k, log_decay=-(bonus**2), bonus=bonus)[0], jnp.zeros((B, time, D)))

    assert exchanged(64) == exchanged(128) != []


def test_memory_is_linear_and_small():
    def run(k, v):
        w = -jnp.ones((64,))
        return decayed_average(k, v, log_decay=w, bonus=w)[0].sum()

    def temporaries(time):
        shape = jax.ShapeDtypeStruct((1, time, 64), jnp.float32)
        return jax.jit(jax.grad(run, argnums=(0, 1))).lower(shape, shape).compile().memory_analysis().temp_size_in_bytes

    assert temporaries(16384) < 2.1 * temporaries(8192) and temporaries(16384) < 8 * 16384 * 64 * 4


def test_shapes_are_checked():
    x = jnp.ones((2, 5, 3))
    with pytest.raises(ValueError, match=r"log_decay: expected the channels of v, \[3\], got \[4\]"):
        decayed_average(x, x, log_decay=jnp.ones(4), bonus=jnp.ones(3))
