"""Documents into rows of one length: whole pieces first, what is left over packed together so that little is padding.

A document is cut into pieces of ``seq_len`` tokens. Every piece is one *segment* of a row: segments of a row are
numbered 1, 2, ... from the left, 0 is padding and stands on the right. Nothing here depends on anything but the
lengths and their order.
"""

import dataclasses
from collections.abc import Iterable, Mapping

import numpy as np


@dataclasses.dataclass(frozen=True)
class Plan:
    """Where every document goes. Arrays have one entry per document.

    Attributes:
      rows: rows in all.
      seq_len: tokens per row.
      first_row: row of its first whole piece; the others follow.
      whole: number of its whole pieces.
      tail_row: row of what is left over, -1 if nothing is.
      tail_offset: first token of it in that row.
      tail_segment: segment id of it in that row.
    """

    rows: int
    seq_len: int
    first_row: np.ndarray
    whole: np.ndarray
    tail_row: np.ndarray
    tail_offset: np.ndarray
    tail_segment: np.ndarray


def plan(lengths: Iterable[int], seq_len: int) -> Plan:
    """Best-fit decreasing: each tail, longest first, into the row it fills best; equal lengths keep their order.

    Args:
      lengths: tokens of each document, each at least 1.
      seq_len: tokens per row, at least 2.

    Raises:
      ValueError: a length below 1 or ``seq_len`` below 2.
    """
    lengths = np.asarray(lengths, np.int64).reshape(-1)
    if seq_len < 2:
        raise ValueError(f"seq_len: expected at least 2, got {seq_len}")
    if (lengths < 1).any():
        raise ValueError(f"lengths: expected at least 1 token per document, got {int(np.min(lengths))}")
    whole, tails = np.divmod(lengths, seq_len)
    first_row = np.cumsum(whole) - whole
    rows = int(whole.sum())

    tail_row = np.full(len(lengths), -1, np.int64)
    tail_offset = np.zeros(len(lengths), np.int64)
    tail_segment = np.zeros(len(lengths), np.int64)
    filled: list[list[int]] = [[] for _ in range(seq_len)]  # open rows by the tokens left in them
    available = 0  # bit n: some open row has exactly n tokens left
    segments: dict[int, int] = {}
    for document in np.argsort(-tails, kind="stable").tolist():
        need = int(tails[document])
        if need == 0:
            break
        fitting = available >> need
        if fitting:
            left = need + (fitting & -fitting).bit_length() - 1
            row = filled[left].pop()
            if not filled[left]:
                available ^= 1 << left
        else:
            left, row = seq_len, rows
            rows += 1
        segments[row] = segments.get(row, 0) + 1
        tail_row[document], tail_offset[document] = row, seq_len - left
        tail_segment[document] = segments[row]
        if left > need:
            filled[left - need].append(row)
            available |= 1 << (left - need)
    return Plan(rows, seq_len, first_row, whole, tail_row, tail_offset, tail_segment)


def place(arrays: Mapping[str, np.ndarray], plan: Plan, document: int, tokens: np.ndarray) -> None:
    """Writes one document's tokens into ``tokens``, ``segment_ids`` and ``loss_mask``, each ``[rows, seq_len]``.

    ``loss_mask[t]`` is 1 where token t may be predicted from those before it: everywhere but at the first token of a
    segment, which has nothing before it.
    """
    width = plan.seq_len
    first, whole = int(plan.first_row[document]), int(plan.whole[document])
    if whole:
        rows = slice(first, first + whole)
        arrays["tokens"][rows] = tokens[: whole * width].reshape(whole, width)
        arrays["segment_ids"][rows] = 1
        arrays["loss_mask"][rows, 1:] = 1
    row = int(plan.tail_row[document])
    if row >= 0:
        start = int(plan.tail_offset[document])
        end = start + len(tokens) - whole * width
        arrays["tokens"][row, start:end] = tokens[whole * width :]
        arrays["segment_ids"][row, start:end] = plan.tail_segment[document]
        arrays["loss_mask"][row, start + 1 : end] = 1
