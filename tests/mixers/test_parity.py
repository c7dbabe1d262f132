"""Parity of 1000 bits (2411.12537): a delta-rule mixer holds it with negative eigenvalues, and cannot without."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from effarch import registry
from effarch.mixers import Context, LayerInfo
from effarch.ops.recurrence import Delta, linear_recurrence

T = 1000
START, ZERO, ONE = 0, 1, 2  # channels of one-hot tokens
HUGE = 1e3


def rows(*values):
    """A kernel: what each of the three tokens is mapped to."""
    return jnp.asarray(values, jnp.float32)


def by_hand(name, **options):
    """A mixer of one head of two channels that writes at the start and reflects the state at every one.

    Keys and queries are the first unit vector; the second channel of the state stays 0.
    """
    config = registry.get("mixer", name)(num_heads=1, head_dim=2, value_head_dim=2, conv_width=1, **options)
    mixer = config.make(3, layer=LayerInfo(), rngs=nnx.Rngs(0))
    mixer.conv.vanish()
    writes = config.writes

    def set_kernel(linear, tokens, fill=0.0):
        """The kernel of the first write; the others are ``fill``."""
        kernel = jnp.full(linear.kernel.shape, fill)
        first = kernel[:, 0] if writes and linear is not mixer.q else kernel
        first = tokens.reshape(first.shape)
        linear.kernel[...] = kernel.at[:, 0].set(first) if writes and linear is not mixer.q else first

    unit = rows([HUGE, 0], [HUGE, 0], [HUGE, 0])
    set_kernel(mixer.q, unit)
    set_kernel(mixer.k, unit, HUGE)
    set_kernel(mixer.v, rows([1, 0], [0, 0], [0, 0]))
    set_kernel(mixer.b, rows([0], [-HUGE], [HUGE]), -HUGE)  # strengths 0.5, 0, 1; doubled 1, 0, 2
    if hasattr(mixer, "log_rate"):
        mixer.log_rate[...] = jnp.full_like(mixer.log_rate[...], -HUGE)  # nothing decays
    if hasattr(mixer, "gate"):  # the same for every token
        nnx.update(mixer.gate, jax.tree.map(jnp.ones_like, nnx.state(mixer.gate)))
    mixer.o.kernel[...] = jnp.zeros_like(mixer.o.kernel[...]).at[0, 0, 0].set(1)
    return mixer


def run(mixer, bits, form):
    """What is read after each bit."""
    x = jax.nn.one_hot(jnp.concatenate([jnp.asarray([START]), jnp.where(bits, ONE, ZERO)]), 3)[None]
    ctx, _ = Context.of(1, T + 1, form=form)
    return np.asarray(mixer(x, None, ctx)[0][0, 1:, 0])


@pytest.mark.parametrize("form", ["chunkwise", "recurrent"])
@pytest.mark.parametrize("name", ["deltanet", "gated_deltanet", "kda", "deltaproduct", "gated_deltaproduct"])
def test_negative_eigenvalues_hold_parity(name, form):
    bits = np.random.default_rng(0).integers(0, 2, size=T)
    odd = np.cumsum(bits) % 2 == 1
    y = run(by_hand(name, negative_eigenvalues=True), bits, form)
    assert (np.sign(y) == np.where(odd, -1, 1)).all()
    assert np.ptp(np.abs(y)) <= 1e-6 * np.abs(y).max()  # reflections lose nothing
    erased = run(by_hand(name, negative_eigenvalues=False), bits, form)  # by the first one, with the same weights
    assert np.abs(erased[np.argmax(bits) :]).max() < 1e-4 * np.abs(y).max()


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("negative", [False, True])
def test_only_negative_eigenvalues_alternate(seed, negative):
    """A token of the same k, v, b a thousand times, from any state: ``o_t = x + y (1 - b)^t``.

    With b < 1 it goes one way, whatever is read: no threshold tells odd from even. With b > 1 every token turns back.
    """
    rng = np.random.default_rng(seed)
    with jax.enable_x64(True):
        q, k, v = (jnp.broadcast_to(jnp.asarray(rng.normal(size=4)), (1, T, 1, 4)) for _ in range(3))
        k = k / jnp.linalg.norm(k, axis=-1, keepdims=True)
        beta = jnp.full((1, T, 1), rng.uniform(0, 1) + (1.0 if negative else 0.0))
        state = jnp.asarray(rng.normal(size=(1, 1, 4, 4)))
        o = linear_recurrence(q, k, v, transition=Delta(beta), state=state)[0][0, :, 0]
    steps = np.diff(np.asarray(o), axis=0)
    steps = steps[np.abs(steps).min(axis=1) > 1e-12]  # before it has arrived
    assert len(steps) >= 3
    assert (np.sign(steps[1:]) == np.sign(steps[:-1]) * (-1 if negative else 1)).all()
