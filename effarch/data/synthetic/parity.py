"""Parity: the smallest task of state tracking, here at every token (2411.12537).

    0 1 1 0 1
    0 1 0 0 1        how many ones so far, modulo 2

One bit of state suffices, but a transition whose eigenvalues are all positive (a decay, a write strength below 1)
cannot flip it at any length; such a mixer can only learn the lengths that it has seen.
"""

import numpy as np

from effarch.data.synthetic.task import Task
from effarch.registry import register


@register("parity", kind="task")
class Parity(Task):
    """The parity of the ones so far."""

    @property
    def vocab_size(self) -> int:
        return 2

    def draw(self, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        tokens = rng.integers(2, size=self.length)
        return tokens, np.cumsum(tokens) % 2, np.ones(self.length, np.int32)
