"""Which tokens are hidden, how, and from what."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from effarch.config import UserError, load
from effarch.data.bytes import BOS, EOS, ByteTokenizer
from effarch.data.masking import Masking, MaskingConfig

MASK = 258


def rows(batch: int = 64, time: int = 256) -> dict:
    """Two documents a row, between marks, and padding behind them."""
    rng = np.random.default_rng(0)
    tokens = rng.integers(0, 256, (batch, time)).astype(np.int32)
    documents = np.repeat([[1, 2, 0]], batch, axis=0).repeat([100, 100, time - 200], axis=1).astype(np.int32)
    tokens[:, [0, 100]], tokens[:, [99, 199]] = BOS, EOS
    return {"tokens": jnp.asarray(tokens), "segment_ids": jnp.asarray(documents)}


def test_shares():
    """Of 12,672 tokens: within five standard deviations of what the config says."""
    masking, batch = Masking.of(MaskingConfig(), ByteTokenizer()), rows()
    assert masking.token == MASK and masking.rows == 259 and masking.special == (BOS, EOS, MASK)
    found = jax.tree.map(np.asarray, masking(batch, jax.random.key(0)))
    tokens, chosen = np.asarray(batch["tokens"]), found["chosen"] > 0
    ordinary = (np.asarray(batch["segment_ids"]) > 0) & (tokens < 256)
    assert not chosen[~ordinary].any()
    np.testing.assert_array_equal(found["inputs"][~chosen], tokens[~chosen])
    np.testing.assert_array_equal(found["targets"], tokens)
    np.testing.assert_array_equal(found["mask"], batch["segment_ids"])

    def near(share: float, expected: float, count: int) -> bool:
        return abs(share - expected) < 5 * np.sqrt(expected * (1 - expected) / count)

    count = chosen.sum()
    assert near(count / ordinary.sum(), 0.15, ordinary.sum())
    shown, was = found["inputs"][chosen], tokens[chosen]
    assert near((shown == MASK).mean(), 0.8, count)
    assert near((shown == was).mean(), 0.1 + 0.1 / 258, count)
    others = shown[(shown != MASK) & (shown != was)]
    assert others.max() < 258 and len(np.unique(others)) > 0.3 * len(others)


def test_every_draw_is_another_and_is_repeated():
    masking, batch = Masking.of(MaskingConfig(), ByteTokenizer()), rows(4)
    one, two, again = (np.asarray(masking(batch, jax.random.key(seed))["chosen"]) for seed in (0, 1, 0))
    assert (one != two).any() and (one == again).all()
    whole = Masking.of(MaskingConfig(fraction=0.5, hidden=0.0, random=1.0, token=7), ByteTokenizer())
    found = np.asarray(whole(batch, jax.random.key(0))["inputs"])
    assert whole.token == 7 and whole.rows == 258 and (found != np.asarray(batch["tokens"])).any()


def test_mistakes():
    with pytest.raises(UserError, match=r"random: expected at most 0\.2, what hidden leaves, got 0\.3"):
        load(MaskingConfig, None, ["random=0.3"])
