"""The order of training: batch n of an epoch is ``permutation(seed, epoch)[n B : (n + 1) B]``, and nothing else.

So the data position is two integers, and no batch depends on processes, on restarts or on what was read before. A
process reads those rows of a batch that its devices hold.
"""

import collections
import dataclasses
import functools
from collections.abc import Generator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Protocol

import numpy as np

from effarch.config import UserError

_SEEDS = 2**32  # a larger seed would take two words of the seed sequence, and be mistaken for another pair


@dataclasses.dataclass(frozen=True, order=True)
class DataPosition:
    """The next batch to train on: ``batch`` counts from 0 in each epoch."""

    epoch: int = 0
    batch: int = 0


class RowSet(Protocol):
    """What batches are drawn from: rows of text, images."""

    @property
    def seq_len(self) -> int:
        """Tokens per row."""
        ...

    def __len__(self) -> int:
        """Number of rows."""
        ...

    def take(self, indices: np.ndarray) -> dict[str, np.ndarray]:
        """Some rows; the first dimension of every array is that of ``indices``."""
        ...


@functools.lru_cache(maxsize=2)
def permutation(seed: int, epoch: int, rows: int) -> np.ndarray:
    """The order of ``rows`` rows in one epoch, int64, read-only."""
    order = np.random.Generator(np.random.Philox(np.random.SeedSequence([seed, epoch]))).permutation(rows)
    order.flags.writeable = False
    return order


class Batches:
    """Endless training batches over prepared rows. The rows that do not fill a batch are left out of their epoch.

    Args:
      rows: what to draw from.
      batch_size: rows per batch over all processes.
      seed: of the order, 0 <= seed < 2^32.

    Raises:
      ValueError: a seed out of range.
      UserError: fewer rows than one batch.
    """

    def __init__(self, rows: RowSet, batch_size: int, seed: int):
        if not 0 <= seed < _SEEDS:
            raise ValueError(f"seed: expected 0 <= seed < 2**32, got {seed}")
        self.rows = rows
        self.batch_size = batch_size
        self.seed = seed
        if self.batches_per_epoch < 1:
            raise UserError(f"data: expected at least batch_size={batch_size} rows to train on, got {len(rows)}")

    @property
    def batches_per_epoch(self) -> int:
        """Whole batches in an epoch."""
        return len(self.rows) // self.batch_size

    def batch_at(self, position: DataPosition, held: np.ndarray | None = None) -> dict[str, np.ndarray]:
        """The rows of one batch, each array ``[batch_size, ...]``; a pure function.

        Args:
          position: of the batch. held: which of its rows, 0 to ``batch_size - 1``; all by default.

        Raises:
          ValueError: no such position.
          UserError: a token id outside the vocabulary.
        """
        if position.epoch < 0 or not 0 <= position.batch < self.batches_per_epoch:
            raise ValueError(f"position: expected batch < {self.batches_per_epoch}, both >= 0, got {position}")
        order = permutation(self.seed, position.epoch, len(self.rows))
        start = position.batch * self.batch_size
        rows = order[start : start + self.batch_size]
        return self.rows.take(rows if held is None else rows[held])

    def position_after(self, batches: int) -> DataPosition:
        """The position after so many batches, from the beginning."""
        return DataPosition(*divmod(batches, self.batches_per_epoch))

    def next_position(self, position: DataPosition) -> DataPosition:
        """The position after one batch."""
        if position.batch + 1 < self.batches_per_epoch:
            return DataPosition(position.epoch, position.batch + 1)
        return DataPosition(position.epoch + 1, 0)

    def rows_read(self, position: DataPosition, count: int) -> np.ndarray:
        """Numbers of the rows in ``count`` batches from a position on, over all processes: ascending, int64."""
        found = np.zeros(len(self.rows), bool)
        while count > 0:
            here = min(count, self.batches_per_epoch - position.batch)
            order = permutation(self.seed, position.epoch, len(self.rows))
            found[order[position.batch * self.batch_size :][: here * self.batch_size]] = True
            position, count = DataPosition(position.epoch + 1, 0), count - here
        return np.flatnonzero(found)

    def iterate(
        self, position: DataPosition = DataPosition(), *, prefetch: int = 2, held: np.ndarray | None = None
    ) -> Generator[tuple[DataPosition, dict[str, np.ndarray]]]:
        """Batches from a position on, for ever, each with its position.

        Args:
          position: the first one.
          prefetch: batches that a thread reads ahead; 0 reads each when it is asked for. The order is the same.
          held: as for :meth:`batch_at`.
        """
        if prefetch < 1:
            while True:
                yield position, self.batch_at(position, held)
                position = self.next_position(position)
        waiting: collections.deque[tuple[DataPosition, Future]] = collections.deque()
        with ThreadPoolExecutor(1, thread_name_prefix="batches") as pool:
            try:
                while True:
                    while len(waiting) <= prefetch:
                        waiting.append((position, pool.submit(self.batch_at, position, held)))
                        position = self.next_position(position)
                    current, batch = waiting.popleft()
                    yield current, batch.result()
            finally:
                pool.shutdown(cancel_futures=True)
