"""Scores of models whose answers are known."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from effarch.data import ByteTokenizer
from effarch.eval import scores
from effarch.eval.positions import in_batches, position_scores
from effarch.eval.recall import answer_shares, recall_scores
from effarch.eval.scores import score_tokens, text_scores
from effarch.models.lm import LM
from tests.models import tiny
from tests.tolerances import TOL, assert_close

VOCAB = 258
CONFIG = tiny.config("retnet", layers=1).replace(vocab_size=VOCAB)


def parrot() -> LM:
    """Says that every token repeats: nothing but the embedding, one direction per token, is left of the model."""
    lm = tiny.model(CONFIG)
    silent = jax.tree.map(jnp.zeros_like, nnx.split(lm.stack)[1])
    lm.stack = nnx.merge(nnx.split(lm.stack)[0], silent)
    lm.embedding.table[...] = jax.random.normal(jax.random.key(0), (VOCAB, tiny.DIM))
    lm.norm.weight[...] = 10 * jnp.ones((tiny.DIM,))
    return lm


def uniform() -> LM:
    """Every token is as likely."""
    lm = tiny.model(CONFIG)
    lm.embedding.table[...] = jnp.zeros((VOCAB, tiny.DIM))
    return lm


def row(*tokens: int, ids=None, mask=None) -> dict[str, np.ndarray]:
    ids = [1] * len(tokens) if ids is None else ids
    mask = [0] + [1] * (len(tokens) - 1) if mask is None else mask
    named = {"tokens": (tokens, np.int32), "segment_ids": (ids, np.int32), "loss_mask": (mask, np.float32)}
    return {name: np.asarray([x], dtype) for name, (x, dtype) in named.items()}


def test_bits_per_byte_of_a_uniform_model():
    """Special tokens cost bits and are no bytes; padding and first tokens are neither; over all batches together."""
    rows = [
        row(256, 97, 98, 99, 257, 0, ids=[1, 1, 1, 1, 1, 0], mask=[0, 1, 1, 1, 1, 0]),  # 4 targets, 3 bytes
        row(256, 97, 257, 256, 98, 99, ids=[1, 1, 1, 2, 2, 2], mask=[0, 1, 1, 0, 1, 1]),  # 4 targets, 3 bytes
    ]
    found = text_scores(uniform(), rows)
    assert_close(found.bits_per_byte, 8 / 6 * math.log2(VOCAB), TOL.f32_forward)
    assert found.kl_bits is None and found.agreement is None


def test_bits_per_byte_count_the_bytes_of_tokens():
    """Whatever a token stands for: here even ids for three bytes, odd ones for none."""

    class Threes(ByteTokenizer):
        def byte_counts(self, tokens):
            return np.where(np.asarray(tokens) % 2, 0, 3)

    rows = [row(4, 6, 7, 8, 2, 2, ids=[1, 1, 1, 1, 0, 0], mask=[0, 1, 1, 1, 0, 0])]  # 3 targets, 6 bytes
    found = text_scores(uniform(), rows, tokenizer=Threes())
    assert_close(found.bits_per_byte, 3 / 6 * math.log2(VOCAB), TOL.f32_forward)


def test_divergence_from_a_teacher():
    """0 from itself; from a uniform teacher, what the uniform distribution says of it, per token."""
    rows = [row(256, 97, 98, 99, 257, 5)]
    lm = parrot()
    itself = text_scores(lm, rows, teacher=lm)
    assert itself.kl_bits == 0 and itself.agreement == 1
    # the uniform teacher's likeliest token is the first, 0, which the parrot says after none of these
    assert text_scores(lm, rows, teacher=uniform()).agreement == 0
    assert text_scores(
        lm, [row(0, 0, 1, 0, 9, 9, ids=[1, 1, 1, 1, 0, 0], mask=[0, 1, 1, 1, 0, 0])], teacher=uniform()
    ).agreement == pytest.approx(2 / 3)
    logits = np.asarray(lm(jnp.asarray(rows[0]["tokens"]))[0], np.float64)[0, :5]
    below = logits - np.log(np.exp(logits - logits.max(axis=-1, keepdims=True)).sum(axis=-1, keepdims=True))
    below = below - logits.max(axis=-1, keepdims=True)
    expected = (-math.log(VOCAB) - below.mean(axis=-1)).mean() / math.log(2)
    assert_close(text_scores(lm, rows, teacher=uniform()).kl_bits, expected, TOL.f32_forward)


def test_scores_of_tokens():
    found = score_tokens(parrot(), row(5, 5, 6, 6, 7))
    assert found["mask"].tolist() == [[1, 1, 1, 1, 0]]
    assert found["correct"].tolist() == [[1, 0, 1, 0, 0]]
    assert (found["nll"][0, [0, 2]] < 0.1).all() and (found["nll"][0, [1, 3]] > 1).all() and found["nll"][0, 4] == 0
    assert "kl" not in found


def test_recall_by_distance():
    """The answer at t is predicted at t - 1; each distance falls in the bucket of the next power of two."""
    # tokens repeat at 1, 3, 6, 7: there the parrot is right
    tokens = (5, 5, 6, 6, 7, 8, 8, 8)
    distance = [0, 1, 2, 3, 4, 0, 16, 17]
    mask = [0, 1, 1, 1, 1, 0, 1, 1]
    batch = row(*tokens, mask=mask) | {"distance": np.asarray([distance], np.int32)}
    found = recall_scores(parrot(), [batch], window=3)
    assert found.by_distance == {1: 1.0, 2: 0.0, 4: 0.5, 16: 1.0, 32: 1.0}
    assert (found.within, found.beyond) == (pytest.approx(2 / 3), pytest.approx(2 / 3))
    found = recall_scores(parrot(), [batch, batch], window=16)
    assert (found.within, found.beyond) == (pytest.approx(3 / 5), 1.0)
    assert math.isnan(recall_scores(parrot(), [batch], window=100).beyond)


def test_recall_by_kind():
    tokens = (5, 5, 6, 6, 7, 8, 8, 8)  # the parrot is right at 1, 3, 6, 7
    batch = row(*tokens) | {"distance": np.asarray([[0, 1, 2, 3, 4, 0, 16, 17]], np.int32)}
    other = row(*tokens) | {"distance": np.asarray([[0, 1, 0, 0, 0, 0, 0, 9]], np.int32)}
    found = recall_scores(parrot(), [batch | {"kind": np.array(["copy"])}, other | {"kind": np.array(["lookup"])}], 3)
    assert found.by_kind == {"copy": (pytest.approx(2 / 3), pytest.approx(2 / 3)), "lookup": (1.0, 1.0)}
    assert recall_scores(parrot(), [batch], 3).by_kind == {}


def test_an_answer_counts_where_all_of_it_is_right():
    """Of the first row's two answers the parrot says one; of the second's, of three tokens, all but the first."""
    first = row(5, 5, 6, 6, 7, 8, 8, 8) | {"answer": np.asarray([[0, 0, 0, 1, 0, 2, 2, 2]])}
    second = row(5, 6, 6, 7, 7, 8, 8, 8) | {"answer": np.asarray([[0, 0, 0, 0, 0, 1, 1, 1]])}
    third = row(5, 6, 6, 7, 7, 8, 8, 8) | {"answer": np.asarray([[0, 0, 0, 0, 0, 0, 1, 1]])}
    none = row(*([0] * 8), ids=[0] * 8) | {"answer": np.zeros((1, 8), int)}
    batch = {name: np.concatenate([x[name] for x in (first, second, third, none)]) for name in first}
    assert answer_shares(parrot(), batch).tolist() == [0.5, 0, 1, pytest.approx(np.nan, nan_ok=True)]


def test_perplexity_by_position():
    """A uniform model has its vocabulary's everywhere; one that repeats is good where the text does."""
    rng = np.random.default_rng(0)
    rows = {}
    for length in (12, 40):
        tokens = np.concatenate([rng.integers(0, 9, (3, 6)), np.full((3, length - 6), 7)], axis=1).astype(np.int32)
        tokens[:, :6] += np.arange(6) * 10  # neighbours differ
        rows[length] = {
            "tokens": tokens,
            "segment_ids": np.ones_like(tokens),
            "loss_mask": np.ones(tokens.shape, np.float32),
        }
    found = position_scores(uniform(), rows, 40)
    assert list(found.at) == [12, 40] and list(found.curve) == [8, 12, 16, 32, 40]
    assert_close(np.array([*found.at.values(), *found.curve.values()]), np.full(7, float(VOCAB)), TOL.f32_forward)

    lm = parrot()
    found = position_scores(lm, rows, 40)
    nll = {
        n: np.pad(score_tokens(lm, batch)["nll"][:, :-1], ((0, 0), (1, 0))) for n, batch in rows.items()
    }  # of token t
    for value, length, start, end in [
        (found.at[12], 12, 6, 12),
        (found.at[40], 40, 20, 40),
        (found.curve[8], 12, 1, 8),
        (found.curve[12], 12, 8, 12),
        (found.curve[16], 40, 12, 16),
        (found.curve[40], 40, 32, 40),
    ]:
        assert_close(value, np.exp(nll[length][:, start:end].mean(dtype=np.float64)), TOL.f32_forward)
    assert found.curve[8] > 100 * found.curve[12]


def test_rows_of_a_length_share_one_shape():
    rows = {"tokens": np.arange(30).reshape(5, 6) + 1}
    assert [b["tokens"].shape for b in in_batches(rows, 13)] == [(2, 6)] * 3
    assert in_batches(rows, 13)[2]["tokens"].tolist() == [list(range(25, 31)), [0] * 6]
    assert [b["tokens"].shape for b in in_batches(rows, 3)] == [(1, 6)] * 5
    assert [b["tokens"].shape for b in in_batches({"tokens": rows["tokens"][:1]}, 13)] == [(2, 6)]


def test_nothing_to_score():
    empty = row(1, 2, 3, mask=[0, 0, 0])
    with pytest.raises(ValueError, match="batches: expected text to predict, got none"):
        text_scores(uniform(), [empty])
    with pytest.raises(ValueError, match="batches: expected recall rows with answers, got none"):
        recall_scores(uniform(), [empty | {"distance": np.ones((1, 3), np.int32)}], 3)


def test_padding_rows_count_for_nothing():
    text = row(256, 97, 98, 257)
    padded = {name: np.concatenate([x, np.zeros_like(x)]) for name, x in text.items()}
    lm = parrot()
    assert scores.text_scores(lm, [padded]).bits_per_byte == pytest.approx(scores.text_scores(lm, [text]).bits_per_byte)
