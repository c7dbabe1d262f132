"""Short convolution and token shift: against a loop over documents in numpy, with state, reset and padding."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from effarch.ops.conv import causal_conv, token_shift
from tests.ops.recurrence_cases import random_segments
from tests.tolerances import TOL, assert_close


def naive(x, weight, bias, ids):
    """One document at a time, padding taken out; also the last inputs of the last document."""
    y, taps = np.zeros_like(x), len(weight)
    last = np.zeros((x.shape[0], taps - 1, x.shape[2]))
    for b in range(x.shape[0]):
        history, previous = [], None
        for t in range(x.shape[1]):
            if ids[b, t] == 0:
                continue
            if ids[b, t] != previous:
                history, previous = [np.zeros(x.shape[2])] * (taps - 1), ids[b, t]
            history = [*history, x[b, t]][-taps:]
            y[b, t] = sum(w * h for w, h in zip(weight, history, strict=True)) + bias
        if previous is not None:
            last[b] = history[1 - taps :] if taps > 1 else last[b]
    return y, last


@pytest.mark.parametrize("taps", [1, 2, 4])
@pytest.mark.parametrize("time", [1, 3, 29])
def test_convolution_is_the_loop(taps, time):
    rng = np.random.default_rng(taps)
    x, weight, bias = rng.normal(size=(3, time, 5)), rng.normal(size=(taps, 5)), rng.normal(size=5)
    ids = random_segments(rng, 3, time)
    y, state = causal_conv(*(jnp.asarray(a, jnp.float32) for a in (x, weight, bias)), segment_ids=ids)
    expected, last = naive(x, weight, bias, np.asarray(ids))
    assert_close(y, expected, TOL.f32_forward)
    assert_close(state, last, TOL.f32_forward)


@pytest.mark.parametrize("seed", range(4))
def test_pieces_with_carried_state_are_the_whole(seed):
    """Any split, any documents.

    The state belongs to run 1, ids of the second piece say whether its document goes on.
    """
    rng = np.random.default_rng(seed)
    x, weight = jnp.asarray(rng.normal(size=(3, 24, 5))), jnp.asarray(rng.normal(size=(4, 5)))
    ids = np.array(random_segments(rng, 3, 24))
    cut = int(rng.integers(1, 23))
    first, second = ids[:, :cut], ids[:, cut:].copy()
    for b in range(3):  # the document that the state belongs to is called 1 in the second piece, 1 is called 99
        carried = next((i for i in first[b][::-1] if i), 0)
        row = second[b].copy()
        second[b][row == 1] = 99
        second[b][(row == carried) & (row != 0)] = 1
    whole, end = causal_conv(x, weight, segment_ids=jnp.asarray(ids))
    a, state = causal_conv(x[:, :cut], weight, segment_ids=jnp.asarray(first))
    b, state = causal_conv(x[:, cut:], weight, state=state, segment_ids=jnp.asarray(second))
    assert_close(jnp.concatenate([a, b], axis=1), whole, TOL.f32_forward)
    assert_close(state, end, TOL.f32_forward)
    shifted, last = token_shift(x, segment_ids=jnp.asarray(ids))
    a, state = token_shift(x[:, :cut], segment_ids=jnp.asarray(first))
    b, state = token_shift(x[:, cut:], state=state, segment_ids=jnp.asarray(second))
    assert_close(jnp.concatenate([a, b], axis=1), shifted, TOL.f32_forward)
    assert_close(state, last, TOL.f32_forward)


def test_gradients_do_not_cross_documents():
    rng = np.random.default_rng(0)
    x, weight = jnp.asarray(rng.normal(size=(1, 12, 3))), jnp.asarray(rng.normal(size=(4, 3)))
    ids = jnp.asarray([[1] * 5 + [0] + [2] * 6])

    def late(x, state):
        return (causal_conv(x, weight, state=state, segment_ids=ids)[0][:, 6:] ** 2).sum()

    gx, gs = jax.grad(late, argnums=(0, 1))(x, jnp.ones((1, 3, 3)))
    assert (gx[:, :6] == 0).all() and (gx[:, 6:] != 0).all() and (gs == 0).all()


def test_wrong_state_is_refused():
    with pytest.raises(ValueError, match=r"state: expected shape \[B, W - 1, D\] = \[2, 3, 5\], got \[2, 4, 5\]"):
        causal_conv(jnp.ones((2, 7, 5)), jnp.ones((4, 5)), state=jnp.ones((2, 4, 5)))
