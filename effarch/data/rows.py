"""Prepared rows on disk: memory-mapped, every token id checked on the host before a device sees it."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np

from effarch.config import UserError

FIELDS = ("tokens", "segment_ids", "loss_mask")
LOADED_AS = {"tokens": np.int32, "segment_ids": np.int32, "loss_mask": np.float32, "distance": np.int32}


class Rows:
    """A folder of ``[N, T]`` arrays: ``tokens``, ``segment_ids``, ``loss_mask`` and, in a recall set, ``distance``.

    ``segment_ids`` numbers the documents of a row 1, 2, ...; 0 is padding. ``loss_mask[t]`` is 1 where token t counts
    as a target, predicted from the tokens before it; it is 0 at the first token of a document and at padding.
    ``distance[t]`` is how many tokens back the fact stands that answers token t, 0 where t is no answer.

    Args:
      folder: what :func:`effarch.data.prepare` wrote.
      vocab_size: every token id must be below it.

    Raises:
      UserError: an array is missing, unreadable or of another shape, or there are no rows.
    """

    def __init__(self, folder: str | Path, vocab_size: int):
        self.folder = Path(folder)
        self.vocab_size = vocab_size
        names = (*FIELDS, "distance") if (self.folder / "distance.npy").exists() else FIELDS
        self._arrays = {name: _open(self.folder / f"{name}.npy") for name in names}
        shape = self._arrays["tokens"].shape
        for name, array in self._arrays.items():
            if array.ndim != 2 or array.shape != shape or not array.size:
                path = self.folder / f"{name}.npy"
                raise UserError(f"data: {path}: expected the shape [N, T] of tokens.npy, got {list(array.shape)}")

    def __len__(self) -> int:
        """Number of rows."""
        return self._arrays["tokens"].shape[0]

    @property
    def seq_len(self) -> int:
        """Tokens per row."""
        return self._arrays["tokens"].shape[1]

    def take(self, indices: np.ndarray) -> dict[str, np.ndarray]:
        """Some rows, each array ``[len(indices), T]``: int32, and float32 for ``loss_mask``.

        Args:
          indices: row numbers; ``len(self)`` and above give rows of padding.

        Raises:
          UserError: a token id outside the vocabulary.
        """
        indices = np.asarray(indices, np.int64)
        inside = indices < len(self)
        batch = {}
        for name, array in self._arrays.items():
            rows = np.zeros((len(indices), self.seq_len), LOADED_AS[name])
            rows[inside] = array[indices[inside]]
            batch[name] = rows
        self._check(batch["tokens"], indices)
        return batch

    def in_order(self, batch_size: int) -> Iterator[dict[str, np.ndarray]]:
        """Every row once, in order; the last batch is filled up with rows of padding.

        Args:
          batch_size: rows per batch.

        Raises:
          UserError: a token id outside the vocabulary.
        """
        for start in range(0, len(self), batch_size):
            yield self.take(np.arange(start, start + batch_size))

    def _check(self, tokens: np.ndarray, indices: np.ndarray) -> None:
        bad = np.argwhere((tokens < 0) | (tokens >= self.vocab_size))
        if len(bad):
            row, column = bad[0]
            raise UserError(
                f"data: {self.folder / 'tokens.npy'}: row {int(indices[row])}: token id {int(tokens[row, column])} is"
                f" outside the vocabulary of {self.vocab_size}"
            )


def _open(path: Path) -> np.ndarray:
    try:
        return np.load(path, mmap_mode="r", allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        raise UserError(f"data: cannot read {path}: {error}".splitlines()[0]) from error
