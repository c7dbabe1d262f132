"""The tokens that recall rows are made of: characters for bytes, words of the vocabulary for other tokenizers."""

import dataclasses
import re
import string
from collections.abc import Iterator

import numpy as np

from effarch.config import UserError
from effarch.data.bytes import BOS, ByteTokenizer
from effarch.data.tokenizer import Tokenizer

SYMBOLS = 92  # of the copies
_KEYS, _VALUES = 10, 8  # keys of the lookups, values of each key
_WORD = re.compile("[Ġ▁]([A-Za-z]+)")  # begins with the space of byte-level or SentencePiece tokenizers


@dataclasses.dataclass(frozen=True, eq=False)
class Alphabet:
    """Token ids by their part in a row, all different but that ``symbols`` may be keys and values too.

    Attributes:
      bos: begins a document. bar: ends a copied string. dot: fills.
      symbols: ``[92]``, of the copies. keys: ``[10]``, of the lookups. values: ``[10, 8]``, those of each key.
    """

    bos: int
    bar: int
    dot: int
    symbols: np.ndarray
    keys: np.ndarray
    values: np.ndarray


def _of_bytes() -> Alphabet:
    letters, digits = string.ascii_letters, string.digits
    marks = string.punctuation.replace("|", "").replace(".", "")

    def ids(text: str) -> np.ndarray:
        return np.frombuffer(text.encode(), np.uint8).astype(np.int32)

    values = ids(letters + marks)[: _KEYS * _VALUES].reshape(_KEYS, _VALUES)
    return Alphabet(BOS, ord("|"), ord("."), ids(letters + digits + marks), ids(digits), values)


BYTES = _of_bytes()


def alphabet_of(tokenizer: Tokenizer) -> Alphabet:
    """The alphabet of a tokenizer: words, the longest first, and what else it has where it has too few of them.

    A document begins with ``bos_id``, else with ``eos_id``, else with the bar.

    Raises:
      UserError: a vocabulary of less than 94 tokens that stand for text.
    """
    if isinstance(tokenizer, ByteTokenizer):
        return BYTES
    tokens = tokenizer.token_map()
    by_token = {token: i for i, token in tokens.items()}
    marks = [by_token[mark] for mark in "|." if mark in by_token]
    free = [i for i in _by_preference(tokenizer, tokens) if i not in marks]
    missing = 2 - len(marks)
    marks += free[:missing]
    chosen = np.asarray(free[missing:][:SYMBOLS], np.int32)
    if len(chosen) < SYMBOLS:
        raise UserError(f"data.recall: expected a vocabulary of at least {SYMBOLS + 2} tokens of text, got {len(free)}")
    bar, dot = marks
    begins = [i for i in (tokenizer.bos_id, tokenizer.eos_id, bar) if i is not None]
    keys, values = np.split(chosen[: _KEYS * (1 + _VALUES)], [_KEYS])
    return Alphabet(begins[0], bar, dot, chosen, keys, values.reshape(_KEYS, _VALUES))


def _by_preference(tokenizer: Tokenizer, tokens: dict[int, str]) -> Iterator[int]:
    """Ids of text: words that encoding gives back, then all others, of each the longest first."""
    special = {tokenizer.bos_id, tokenizer.eos_id, tokenizer.pad_id}
    words = [(i, match[1]) for i, token in tokens.items() if i not in special and (match := _WORD.fullmatch(token))]
    words.sort(key=lambda word: (-len(word[1]), word[0]))
    encoded = tokenizer.encode_batch([f"a {word}" for _, word in words])
    whole = [i for (i, _), ids in zip(words, encoded, strict=True) if i in ids]
    yield from whole
    counts = tokenizer.byte_counts(np.arange(tokenizer.vocab_size))
    others = (i for i in tokens if counts[i] > 0 and i not in special | set(whole))
    yield from sorted(others, key=lambda i: (-counts[i], i))
