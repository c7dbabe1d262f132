"""Rows that cannot be predicted without memory: repeated strings and key-value lookups, at known distances.

Both kinds obey one rule, which a reader of the text can check: inside a document, each *prompt* symbol always has the
same successor, so from its second appearance on the successor is predictable, and the *distance* of that answer is the
number of tokens back to its last appearance after the same prompt.

- copy: ``abc|xy|xy|xy|abc|...``: a string of symbols that differ, then shorter strings repeated until the distance is
  reached, then the first string again, and so on with that period. All of a copy but its first symbol is an answer.
- lookup: ``3q7K0a....7K3q0a....``: digits with a value each (the facts), dots until the distance is reached, then the
  digits in another order with the same values, and so on; or, instead of dots, half of the digits over and over while
  the others wait. A digit's value is one of eight that belong to this digit alone, so that one attention layer can find
  it, where a copy takes two that work together [softmax attention, 2 layers, width 128, 200k tokens of these rows:
  lookups 99 %, copies 10 %].

That is how they read as bytes. Other tokenizers get the same rows with a token of their vocabulary, a word if possible,
in the place of every character (:mod:`effarch.data.alphabet`).

A row is filled with such documents, short and long, each beginning with ``bos``. Row ``i`` of a seed is a pure function
of ``(seed, i)``: every fourth is a copy, the others are lookups.
"""

from typing import Annotated

import numpy as np
import pydantic

from effarch.config import Config, UserError
from effarch.data.alphabet import BYTES, SYMBOLS, Alphabet

MIN_SEQ_LEN = 32
_MIN_DOCUMENT = 16  # what is left of a row is padding when it is shorter than this
_SHORTEST = 4  # symbols of the shortest string that is copied
_FEWEST = 3  # pairs of the smallest lookup
KINDS = ("copy", "lookup")
_CYCLE = (0, 1, 1, 1)  # kind of row i, modulo its length: lookups are what a small model learns first


class RecallConfig(Config):
    """Recall rows among the training rows, and the set that measures recall.

    Args:
      fraction: share of training rows that are recall rows, in [0, 1).
      eval_rows: rows of the evaluation set; 0 leaves it out.
      symbols: alphabet of the copies. A small one is learned in fewer steps (each symbol is seen more often), a large
        one has more answers far back.
      seed: of both; they never share a row.
    """

    fraction: Annotated[float, pydantic.Field(ge=0, lt=1)] = 0.25
    eval_rows: Annotated[int, pydantic.Field(ge=0)] = 128
    symbols: Annotated[int, pydantic.Field(ge=16, le=SYMBOLS)] = 26
    seed: Annotated[int, pydantic.Field(ge=0, lt=2**32)] = 0


def kind_of(index: int) -> str:
    """The kind of row ``index`` of a stream, one of :data:`KINDS`."""
    return KINDS[_CYCLE[index % len(_CYCLE)]]


def recall_row(
    seed: tuple[int, ...], index: int, seq_len: int, symbols: int = 26, alphabet: Alphabet = BYTES
) -> dict[str, np.ndarray]:
    """One recall row.

    Args:
      seed: integers >= 0 that name the stream.
      index: >= 0, number of the row in the stream; :func:`kind_of` tells its kind.
      seq_len: tokens in the row, at least 32.
      symbols: how many of the alphabet's the copies use, 16 to 92 (see :class:`RecallConfig`).
      alphabet: the tokens of the rows; bytes, or :func:`effarch.data.alphabet.alphabet_of` a tokenizer.

    Returns:
      ``tokens``, ``segment_ids``, ``loss_mask`` (1 at answers) and ``distance`` (tokens back to the fact, 0 where
      there is no answer), each ``[seq_len]`` int32.

    Raises:
      UserError: ``seq_len`` is too short for recall.
    """
    if seq_len < MIN_SEQ_LEN:
        raise UserError(f"data.recall: expected seq_len of at least {MIN_SEQ_LEN}, got {seq_len}")
    rng = np.random.Generator(np.random.Philox(np.random.SeedSequence([*seed, index])))
    copy = kind_of(index) == "copy"
    prompts = alphabet.symbols[:symbols] if copy else alphabet.keys
    tokens, segment_ids, distance = np.zeros((3, seq_len), np.int32)
    start, segment = 0, 0
    while seq_len - start >= _MIN_DOCUMENT:
        room = seq_len - start - 1
        text = _copy(rng, room, prompts, alphabet.bar) if copy else _lookup(rng, room, alphabet)
        segment += 1
        end = start + 1 + len(text)
        tokens[start], tokens[start + 1 : end] = alphabet.bos, text
        segment_ids[start:end] = segment
        distance[start + 1 : end] = _distances(text, prompts)
        start = end
    return {
        "tokens": tokens,
        "segment_ids": segment_ids,
        "loss_mask": (distance > 0).astype(np.int32),
        "distance": distance,
    }


def _distances(text: np.ndarray, prompts: np.ndarray) -> np.ndarray:
    """Distance from what follows a prompt back to what followed it the last time; 0 elsewhere."""
    distance = np.zeros(len(text), np.int32)
    last: dict[int, int] = {}
    known = frozenset(prompts.tolist())
    for t, prompt in enumerate(text[:-1].tolist(), start=1):
        if prompt in known:
            distance[t] = t - last.get(prompt, t)
            last[prompt] = t
    return distance


def _log_uniform(rng: np.random.Generator, low: int, high: int) -> int:
    """An integer in [low, high], small ones as likely as large ones on a logarithmic scale."""
    return min(high, int(np.exp(rng.uniform(np.log(low), np.log(high + 1)))))


def _copy(rng: np.random.Generator, room: int, prompts: np.ndarray, bar: int) -> np.ndarray:
    """A periodic text of at most ``room`` tokens: a string, shorter ones until the distance is reached, again."""
    symbols = rng.permutation(prompts)
    longest = len(symbols) * 4 // 5  # the others are for the strings in between
    distance = _log_uniform(rng, _SHORTEST + 1, room - _SHORTEST)
    size = distance - 1 if distance <= longest + 1 else int(rng.integers(longest // 2, longest + 1))
    period, others = np.append(symbols[:size], bar), symbols[size:]
    gap = distance - len(period)
    if gap > _SHORTEST:
        inner = np.append(others[: int(rng.integers(_SHORTEST, min(len(others), gap - 1) + 1))], bar)
        period = np.append(period, np.tile(inner, gap // len(inner)))
    return np.resize(period, min(room, len(period) * int(rng.integers(2, 5))))


def _lookup(rng: np.random.Generator, room: int, alphabet: Alphabet) -> np.ndarray:
    """Keys with their values, once each, then again after a while of dots or of other keys; at most ``room`` tokens."""
    names, values = alphabet.keys, alphabet.values
    keys = rng.permutation(len(names))[: rng.integers(_FEWEST, min(len(names), room // 4) + 1)]
    facts = np.stack([names[keys], values[keys, rng.integers(values.shape[1], size=len(keys))]], axis=1)
    dots = np.full((1, 2), alphabet.dot, facts.dtype)
    busy, waiting = np.split(facts, [int(rng.integers(2)) * len(keys) // 2])
    distance = _log_uniform(rng, facts.size, room - facts.size)
    pause = (distance - waiting.size) // 2  # in pairs
    text = [facts]
    for _ in range(rng.integers(2, 5)):
        asked = [rng.permutation(busy) for _ in range(pause // len(busy) + 1)] if len(busy) else [dots] * pause
        text += [np.concatenate([*asked, facts[:0]])[:pause], rng.permutation(waiting)]
    return np.concatenate(text).reshape(-1)[:room]


def recall_rows(
    seed: tuple[int, ...], start: int, stop: int, seq_len: int, symbols: int = 26, alphabet: Alphabet = BYTES
) -> dict[str, np.ndarray]:
    """Rows ``start .. stop - 1`` of a stream, stacked: the fields of :func:`recall_row`, each ``[N, seq_len]``."""
    rows = [recall_row(seed, index, seq_len, symbols, alphabet) for index in range(start, stop)]
    return {name: np.stack([row[name] for row in rows]) for name in rows[0]}
