"""Rows longer than those that were prepared: the same text, end to end.

A document longer than a prepared row lies in rows that follow each other, so what stands end to end is mostly a
document as it was written; documents and what was left over of them follow each other as if they were one text.
"""

import numpy as np

from effarch.data.rows import Rows

_AT_ONCE = 64  # rows read at a time


def stream(rows: Rows, tokens: int) -> tuple[np.ndarray, np.ndarray]:
    """The first tokens of all rows, in order and without padding, or as many as there are.

    Args:
      rows: prepared rows of text. tokens: how many to read.

    Returns:
      ``tokens [N]`` int32 and ``loss_mask [N]`` float32, 0 at the first token of a piece, for nothing announces it.
    """
    found: list[tuple[np.ndarray, np.ndarray]] = []
    read = 0
    for start in range(0, len(rows), _AT_ONCE):
        batch = rows.take(np.arange(start, min(start + _AT_ONCE, len(rows))))
        text = batch["segment_ids"] > 0
        found.append((batch["tokens"][text], batch["loss_mask"][text]))
        read += int(text.sum())
        if read >= tokens:
            break
    ids, mask = (np.concatenate(parts)[:tokens] for parts in zip(*found, strict=True))
    return ids, mask


def reach(rows: Rows, lengths: tuple[int, ...]) -> tuple[int, ...]:
    """The lengths that the text has, those beyond it cut to all of it; ascending, each once."""
    most = len(stream(rows, max(lengths))[0])
    return tuple(sorted({min(length, most) for length in lengths}))


def long_rows(rows: Rows, length: int, tokens: int) -> dict[str, np.ndarray]:
    """Rows of ``length``, cut from the beginning of the text, each one document as far as a model is concerned.

    Args:
      rows: prepared rows of text. length: tokens per row, at most what the text has (:func:`reach`). tokens: of all
        rows together; there is at least one.

    Returns:
      ``tokens``, ``segment_ids`` and ``loss_mask``, each ``[N, length]``.

    Raises:
      ValueError: the text is shorter than one row.
    """
    ids, mask = stream(rows, max(tokens // length, 1) * length)
    count = len(ids) // length
    if not count:
        raise ValueError(f"length: expected at most the {len(ids)} tokens of the text, got {length}")
    ids, mask = (x[: count * length].reshape(count, length) for x in (ids, mask))
    mask[:, 0] = 0
    return {"tokens": ids, "segment_ids": np.ones_like(ids), "loss_mask": mask}
