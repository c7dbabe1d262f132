"""What a synthetic task is: rows of tokens with an answer wherever one is due, each a pure function of (seed, n)."""

import abc

import numpy as np
import pydantic

from effarch.config import Config

Row = dict[str, np.ndarray]
"""``tokens``, ``targets`` (the answer that is due after reading up to here), ``mask`` (1 where one is), int32 [T]."""


class Task(Config, abc.ABC):
    """A task, registered by name; its ``vocab_size`` covers tokens and targets."""

    length: int = pydantic.Field(64, gt=0, description="tokens of a row")

    @property
    @abc.abstractmethod
    def vocab_size(self) -> int:
        """Tokens and answers are below it."""

    @abc.abstractmethod
    def draw(self, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Tokens, targets and mask of one row."""

    def row(self, seed: tuple[int, ...], n: int) -> Row:
        """Row ``n`` of a stream.

        Args:
          seed: integers >= 0 that name the stream. n: >= 0, number of the row in it.
        """
        rng = np.random.Generator(np.random.Philox(np.random.SeedSequence([*seed, n])))
        tokens, targets, mask = (x.astype(np.int32) for x in self.draw(rng))
        return {"tokens": tokens, "targets": targets * mask, "mask": mask}


def batch(task: Task, seed: tuple[int, ...], n: int, rows: int) -> Row:
    """Rows ``n * rows .. (n + 1) * rows - 1`` of a stream, stacked: ``[rows, T]``."""
    drawn = [task.row(seed, i) for i in range(n * rows, (n + 1) * rows)]
    return {name: np.stack([row[name] for row in drawn]) for name in drawn[0]}
