r"""Facts planted in real text and asked for at its end: what a model still knows at a depth of a length.

- needle: one fact in the words of RULER's single needle, shortened (2404.06654, appendix B)::

      text ... \nThe code of maple is 7391.\n ... text \nThe code of maple is 7391
                                                                            ~~~~ the answer

- mqar: several pairs of the lookups of :mod:`effarch.data.recall`, each asked for once, in another order (multi-query
  associative recall, 2312.04927, in context)::

      text ... \n3q7K0a\n ... text \n7K3q0a      every value of the second list is an answer

  with the tokens of those rows (:mod:`effarch.data.alphabet`): digits and letters are what they are in bytes

The *depth* of a fact is where it stands between the first token of the text (0) and the question (1). Every part is
encoded by itself, so that any tokenizer will do: its tokens are those it has at the place where it stands alone.
"""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Literal

import numpy as np

from effarch.data.alphabet import Alphabet, alphabet_of
from effarch.data.tokenizer import Tokenizer

TaskName = Literal["needle", "mqar"]
WORDS = ("maple", "river", "stone", "cloud", "tiger", "violin", "harbor", "candle", "garden", "silver")

Part = tuple[np.ndarray, np.ndarray]  # ids, and the number of the answer that each belongs to; 0: none


def haystack_rows(
    task: TaskName,
    text: np.ndarray,
    tokenizer: Tokenizer,
    length: int,
    depths: Sequence[float],
    *,
    trials: int,
    pairs: int = 4,
    seed: int = 0,
) -> dict[str, np.ndarray]:
    """Rows of one task: ``trials`` of each depth, depth after depth; a trial is the same at every depth but for that.

    Args:
      task: "needle" or "mqar".
      text: ids of real text, at least ``length``.
      tokenizer: of the text.
      length: tokens per row.
      depths: each in [0, 1].
      trials: rows per depth.
      pairs: of a row of mqar, 1 to 10.
      seed: of facts, and of where the text is cut.

    Returns:
      ``tokens``, ``segment_ids``, ``loss_mask`` (1 at answers) and ``answer`` (1, 2, ... : which answer a token is
      part of; 0: none), each ``[len(depths) * trials, length]``.

    Raises:
      ValueError: the facts and questions do not fit into ``length``, or the text is shorter than that.
    """
    if len(text) < length:
        raise ValueError(f"text: expected at least {length} tokens, got {len(text)}")
    draw: Callable[[np.random.Generator], tuple[np.ndarray, list[Part]]]
    draw = partial(_needle, tokenizer) if task == "needle" else partial(_mqar, tokenizer, alphabet_of(tokenizer), pairs)
    begin = tokenizer.encode("", bos=True).astype(np.int32)
    rows = []
    for trial in range(trials):
        rng = np.random.Generator(np.random.Philox(np.random.SeedSequence([seed, length, trial])))
        fact, asked = draw(rng)
        question, answer = (np.concatenate(parts) for parts in zip(*asked, strict=True))
        left = length - len(begin) - len(fact) - len(question)
        if left < 0:
            raise ValueError(f"length: expected at least the {length - left} tokens of a {task}, got {length}")
        start = int(rng.integers(len(text) - left + 1))
        hay = text[start : start + left]
        for depth in depths:
            at = round(depth * left)
            tokens = np.concatenate([begin, hay[:at], fact, hay[at:], question])
            rows.append((tokens, np.concatenate([np.zeros(length - len(answer), np.int32), answer])))
    tokens, answer = (np.stack(x).astype(np.int32) for x in zip(*rows, strict=True))
    order = np.arange(len(rows)).reshape(trials, len(depths)).T.reshape(-1)
    tokens, answer = tokens[order], answer[order]
    mask = (answer > 0).astype(np.float32)
    return {"tokens": tokens, "segment_ids": np.ones_like(tokens), "loss_mask": mask, "answer": answer}


def _part(tokenizer: Tokenizer, text: str, answer: int = 0) -> Part:
    ids = tokenizer.encode(text).astype(np.int32)
    return ids, np.full_like(ids, answer)


def _needle(tokenizer: Tokenizer, rng: np.random.Generator) -> tuple[np.ndarray, list[Part]]:
    word, code = WORDS[rng.integers(len(WORDS))], str(rng.integers(1000, 10_000))
    question = f"\nThe code of {word} is"
    answer = _part(tokenizer, f" {code}", 1)
    end, _ = _part(tokenizer, ".\n")
    asked = _part(tokenizer, question)
    return np.concatenate([asked[0], answer[0], end]), [asked, answer]


def _mqar(
    tokenizer: Tokenizer, alphabet: Alphabet, pairs: int, rng: np.random.Generator
) -> tuple[np.ndarray, list[Part]]:
    count, each = alphabet.values.shape
    if not 1 <= pairs <= count:
        raise ValueError(f"pairs: expected 1 to {count}, got {pairs}")
    keys = rng.permutation(count)[:pairs]
    facts = np.stack([alphabet.keys[keys], alphabet.values[keys, rng.integers(each, size=pairs)]], axis=1)
    asked = rng.permutation(facts).reshape(-1)
    answer = np.arange(2 * pairs) // 2 + 1
    answer[::2] = 0  # a key is no answer
    line, _ = part = _part(tokenizer, "\n")
    return np.concatenate([line, facts.reshape(-1), line]), [part, (asked, answer)]
