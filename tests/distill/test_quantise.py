"""Log-probabilities in few bits: the bounds hold, and are not far from what happens."""

import jax.numpy as jnp
import numpy as np
import pytest

from effarch.distill.quantise import RANGE, decode, encode, worst_case

SHAPE, VOCAB = (3, 40), 300


def likeliest(k: int, temperature: float) -> np.ndarray:
    """Log-probabilities in float64 of the ``k`` likeliest tokens; peaked and flat positions."""
    rng = np.random.default_rng(0)
    logits = rng.normal(size=(*SHAPE, VOCAB)) * rng.choice([0.1, 2.0, 8.0], size=(*SHAPE, 1)) / temperature
    logits -= logits.max(-1, keepdims=True)
    return np.sort(logits - np.log(np.exp(logits).sum(-1, keepdims=True)))[..., ::-1][..., :k]


def stored(log_probs: np.ndarray, bits: int) -> dict[str, np.ndarray]:
    return {name: np.asarray(x) for name, x in encode(jnp.asarray(log_probs, jnp.float32), bits).items()}


@pytest.mark.parametrize("k", [1, 20, VOCAB])
@pytest.mark.parametrize("bits", [8, 16, 32])
def test_the_bounds_hold(bits, k):
    wanted = likeliest(k, 1.0)
    found = stored(wanted, bits)
    assert found["codes"].dtype == {8: np.uint8, 16: np.uint16, 32: np.float32}[bits]
    read = decode(**found).astype(np.float64)
    bound = worst_case(float(found["step"].max()), bits)
    near = wanted[..., :1] - wanted < RANGE  # what lies further below is not bounded one by one
    noise = 3e-6
    assert np.abs(read - wanted)[near].max() <= bound["log_prob"] + noise

    # distributions over k and the rest
    p, q = (np.concatenate([np.exp(x), 1 - np.exp(x).sum(-1, keepdims=True)], -1).clip(1e-7) for x in (wanted, read))
    assert np.abs(np.exp(read).sum(-1) - np.exp(wanted).sum(-1)).max() < noise
    for one, other in ((p, q), (q, p)):
        assert (one * (np.log(one) - np.log(other))).sum(-1).max() <= bound["kl"] + noise
    assert np.abs(p - q).sum(-1).max() <= bound["gradient"] + noise
    if bits == 8 and k == 20:  # and they say something
        assert np.abs(read - wanted)[near].max() > bound["log_prob"] / 8
    assert {8: 1e-3, 16: 1e-7, 32: 0}[bits] * (k > 1) <= bound["log_prob"] <= {8: 0.126, 16: 5e-4, 32: 0}[bits]


def test_entries_that_cannot_be_emitted():
    """A masked vocabulary: hundreds of thousands of nats below, which must not coarsen the others."""
    log_probs = np.log([[0.7, 0.2, 0.1, 0.1]]) - [[0, 0, 0, 1e6]]
    for bits in (8, 16, 32):
        read = decode(**stored(log_probs, bits))
        np.testing.assert_allclose(read[:, :3], log_probs[:, :3], atol={8: 0.13, 16: 5e-4, 32: 1e-6}[bits])
        assert np.isfinite(read).all() and (read[:, 3] < -30).all()


def test_zeros_are_a_distribution():
    """What padding holds."""
    read = decode(np.zeros((2, 5), np.uint8), np.zeros(2, np.float32), np.zeros(2, np.float32))
    np.testing.assert_allclose(np.exp(read), 0.2, rtol=1e-6)
