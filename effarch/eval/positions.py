"""Perplexity by position: what a longer context is worth to a model, and where it loses its way."""

import dataclasses
import math
from collections.abc import Mapping

import numpy as np

from effarch.eval.scores import Batch, score_tokens
from effarch.models.lm import LM

_FIRST = 8  # end of the first bucket of a curve


@dataclasses.dataclass(frozen=True)
class PositionScores:
    """Perplexities, ``exp`` of the mean cross-entropy in nats per token.

    Attributes:
      at: {length: of the second half of rows of this length}, so that ``at[512]`` is of positions 256 to 511.
      curve: {end: of the positions up to it, from the end before}; ends are powers of two, and the lengths. Each is
        taken from the shortest rows that reach it, of which there are most.
    """

    at: dict[int, float]
    curve: dict[int, float]


def position_scores(lm: LM, rows: Mapping[int, Mapping[str, np.ndarray]], batch_tokens: int) -> PositionScores:
    """:class:`PositionScores` over rows of several lengths.

    Args:
      lm: the model. rows: {length: rows, each one document}. batch_tokens: see :func:`in_batches`.

    Raises:
      ValueError: a cross-entropy that is not finite, with its length.
    """
    at, curve, before = {}, {}, 0
    for length, batch in sorted(rows.items()):
        scores = [score_tokens(lm, part) for part in in_batches(batch, batch_tokens)]
        nats, mask = (np.concatenate([s[key] for s in scores])[:, :-1] for key in ("nll", "mask"))
        if not np.isfinite(nats).all():
            raise ValueError(f"rows of {length} tokens: expected a finite cross-entropy")

        def perplexity(start: int, end: int, nats: np.ndarray = nats, mask: np.ndarray = mask) -> float:
            # the token at position t is predicted in column t - 1
            part = slice(max(start - 1, 0), end - 1)
            total, count = nats[:, part].sum(dtype=np.float64), mask[:, part].sum(dtype=np.float64)
            with np.errstate(over="ignore"):
                return float(np.exp(total / count)) if count else math.nan

        at[length] = perplexity(length // 2, length)
        for end in _ends(before, length):
            curve[end] = perplexity(before, end)
            before = end
    return PositionScores(at, curve)


def _ends(before: int, length: int) -> list[int]:
    """Ends of the buckets between two lengths: powers of two, and the length itself."""
    powers = (2**k for k in range(_FIRST.bit_length() - 1, length.bit_length()))
    return [end for end in powers if before < end < length] + [length]


def in_batches(rows: Mapping[str, np.ndarray], tokens: int) -> list[Batch]:
    """Rows in batches of about ``tokens`` tokens, all of one shape: the last is filled up with rows of padding.

    The shape depends on the length of the rows alone, so that all rows of a length share one compiled program.
    """
    count, length = rows["tokens"].shape
    size = max(tokens // length, 1)
    padded = {name: np.pad(x, ((0, -count % size), *(((0, 0),) * (x.ndim - 1)))) for name, x in rows.items()}
    return [{name: x[start : start + size] for name, x in padded.items()} for start in range(0, count, size)]
