"""Recall rows of other tokenizers: the rows of bytes, token for token."""

import numpy as np
import pytest

from effarch.config import UserError
from effarch.data import ByteTokenizer
from effarch.data.alphabet import BYTES, Alphabet, alphabet_of
from effarch.data.recall import recall_rows
from effarch.data.tokenizer import Tokenizer


class Words(Tokenizer):
    """Marks, then words of one to twelve letters; no special token ends a text."""

    kind = "words"

    def __init__(self, count: int, bos: int | None):
        self.words = ["<s>", "|", *("Ġ" + "abcdefghijkl"[i % 12] * (i // 12 + 1) for i in range(count))]
        self.bos = bos

    vocab_size = property(lambda self: len(self.words))
    bos_id = property(lambda self: self.bos)
    eos_id = property(lambda self: None)

    def encode(self, text, *, bos=False, eos=False):
        return np.asarray([self.words.index("Ġ" + word) for word in text.split()], np.int32)

    def decode(self, ids):
        return "".join(self.words[i] for i in ids)

    def byte_counts(self, tokens):
        return np.asarray([0, *(len(word) for word in self.words[1:])])[tokens]

    def token_map(self):
        return dict(enumerate(self.words))

    def save(self, folder):
        raise NotImplementedError


@pytest.mark.parametrize("bos, first", [(0, 0), (None, 1)])
def test_rows_are_those_of_bytes_under_another_name(bos, first):
    alphabet = alphabet_of(Words(140, bos))
    assert alphabet.bos == first and alphabet.bar == 1
    assert not np.isin([0, 1, alphabet.dot], alphabet.symbols).any()
    assert len(set(alphabet.symbols.tolist())) == 92 == len(alphabet.symbols)
    facts = [*alphabet.keys.tolist(), *alphabet.values.reshape(-1).tolist()]
    assert len(set(facts)) == 90 and set(facts) <= set(alphabet.symbols.tolist())
    lengths = [len(Words(140, bos).words[i]) for i in alphabet.symbols]
    assert lengths == sorted(lengths, reverse=True)

    theirs, ours = recall_rows((0, 1), 0, 8, 128, 26), recall_rows((0, 1), 0, 8, 128, 26, alphabet)
    for name in ("segment_ids", "loss_mask", "distance"):
        np.testing.assert_array_equal(ours[name], theirs[name])
    for copy in (True, False):
        rows = np.asarray([(index % 4 == 0) == copy for index in range(8)])
        names = dict(zip(_parts(BYTES, copy), _parts(alphabet, copy), strict=True))
        expected = np.vectorize(names.__getitem__)(theirs["tokens"][rows])
        inside = theirs["segment_ids"][rows] > 0
        np.testing.assert_array_equal(ours["tokens"][rows][inside], expected[inside])


def _parts(alphabet: Alphabet, copy: bool) -> list[int]:
    """Tokens by their part, padding first."""
    of_kind = alphabet.symbols if copy else np.append(alphabet.keys, alphabet.values)
    return [0, alphabet.bos, alphabet.bar, alphabet.dot, *of_kind.tolist()]


def test_a_vocabulary_may_be_too_small():
    assert len(alphabet_of(Words(93, 0)).symbols) == 92
    with pytest.raises(UserError, match="data.recall: expected a vocabulary of at least 94 tokens of text, got 92"):
        alphabet_of(Words(92, 0))
    assert alphabet_of(ByteTokenizer()) is BYTES
