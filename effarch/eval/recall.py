"""How much of what it read a model still knows: recall rows by distance and kind, and facts planted in text."""

import dataclasses
from collections.abc import Iterable

import numpy as np

from effarch.eval.scores import Batch, score_tokens
from effarch.models.lm import LM


@dataclasses.dataclass(frozen=True)
class RecallScores:
    """On synthetic recall rows: accuracy in 0 to 1, greedy, one answer token each.

    Attributes:
      within: answers whose fact lies at most ``window`` tokens back. beyond: the others.
      by_distance: {largest distance of a bucket (a power of two): accuracy}.
      by_kind: {kind of row: (within, beyond)}; empty where rows do not say their kind.
    """

    within: float
    beyond: float
    by_distance: dict[int, float]
    by_kind: dict[str, tuple[float, float]]


def recall_scores(lm: LM, batches: Iterable[Batch], window: int) -> RecallScores:
    """:class:`RecallScores` over batches of recall rows, which carry the ``distance`` of each answer token.

    Args:
      lm: the model.
      batches: with ``distance [B, T]``, 0 where there is no answer; ``kind [B]``, where rows say it, in text.
      window: tokens.

    Raises:
      ValueError: no answers.
    """
    distances, rights, kinds = [], [], []
    for batch in batches:
        scores = score_tokens(lm, batch)
        distance = np.pad(np.asarray(batch["distance"])[:, 1:], ((0, 0), (0, 1)))  # of the token that is predicted
        counted = (scores["mask"] > 0) & (distance > 0)
        distances.append(distance[counted])
        rights.append(scores["correct"][counted])
        if "kind" in batch:
            kinds.append(np.broadcast_to(np.asarray(batch["kind"])[:, None], counted.shape)[counted])
    distance, right = np.concatenate(distances), np.concatenate(rights)
    if not len(right):
        raise ValueError("batches: expected recall rows with answers, got none")

    def accuracy(chosen: np.ndarray) -> float:
        return float(right[chosen].mean()) if chosen.any() else float("nan")

    near, far = distance <= window, distance > window
    buckets = 2 ** np.ceil(np.log2(np.maximum(distance, 1))).astype(int)
    by_distance = {int(b): accuracy(buckets == b) for b in np.unique(buckets)}
    kind = np.concatenate(kinds) if kinds else np.full(len(right), "")
    by_kind = {str(k): (accuracy(near & (kind == k)), accuracy(far & (kind == k))) for k in np.unique(kind) if k}
    return RecallScores(accuracy(near), accuracy(far), by_distance, by_kind)


def answer_shares(lm: LM, batch: Batch) -> np.ndarray:
    """``[B]``: the share of a row's answers, 0 to 1, that greedy decoding would say whole; NaN where there are none.

    Args:
      lm: the model.
      batch: rows with ``answer [B, T]``, which answer a token is part of (0: none), its loss mask 1 there. An answer of
        several tokens counts where all are right, each after the right ones before it: so greedy decoding says it.
    """
    scores = score_tokens(lm, batch)
    answer = np.pad(np.asarray(batch["answer"])[:, 1:], ((0, 0), (0, 1)))
    wrong = (scores["correct"] == 0) & (answer > 0)
    shares = []
    for row, missed in zip(answer, wrong, strict=True):
        asked = np.unique(row[row > 0])
        shares.append(1 - len(np.unique(row[missed])) / len(asked) if len(asked) else np.nan)
    return np.array(shares)
