"""Selective copying: Mamba (2312.00752), section 4.1.1.

    . . c . a . . b . . > > >        symbols among blanks, then as many marks
             answers:   c a b        the symbols in their order, without the blanks

How far apart the symbols stand is random, so that what to keep must be decided token by token.
"""

from typing import Self

import numpy as np
import pydantic

from effarch.data.synthetic.task import Task
from effarch.registry import register

_BLANK, _MARK = 0, 1


@register("selective_copy", kind="task")
class SelectiveCopy(Task):
    """Copy the symbols and not the blanks."""

    items: int = pydantic.Field(8, gt=0, description="symbols in a row, and marks that ask for them")
    symbols: int = pydantic.Field(16, gt=1, description="different symbols")

    @pydantic.model_validator(mode="after")
    def _fits(self) -> Self:
        if 2 * self.items > self.length:
            raise ValueError(f"length: expected at least 2 * items = {2 * self.items}, got {self.length}")
        return self

    @property
    def vocab_size(self) -> int:
        return 2 + self.symbols

    def draw(self, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        start = self.length - self.items
        tokens, targets, mask = np.zeros((3, self.length), np.int32)
        symbols = 2 + rng.integers(self.symbols, size=self.items)
        tokens[np.sort(rng.permutation(start)[: self.items])] = symbols
        tokens[start:] = _MARK
        targets[start:], mask[start:] = symbols, 1
        return tokens, targets, mask
