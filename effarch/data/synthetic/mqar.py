"""Multi-query associative recall: Zoology (2312.04927).

    3 q 7 a 1 k . . 7 . 3 . . 1 .        pairs of a key and its value, then every key once more, in any order
            answers:  a   q     k        at the keys, and there only

Keys and values are symbols of their own. What a mixer must hold is every pair of the row, so that accuracy against
``pairs`` measures its state. Between the queries stands a blank, where the paper has random symbols, and their places
are uniform, where the paper prefers short distances; a row of less than ``pairs`` pairs eases the beginning.
"""

from typing import Self

import numpy as np
import pydantic

from effarch.data.synthetic.task import Task
from effarch.registry import register


@register("mqar", kind="task")
class MQAR(Task):
    """Associative recall of many pairs."""

    pairs: int = pydantic.Field(16, gt=0, description="most pairs in a row; each takes 2 + asks tokens")
    fewest: int | None = pydantic.Field(None, gt=0, description="fewest pairs in a row; null: as many as the most")
    asks: int = pydantic.Field(1, gt=0, description="how often every key is asked for")
    keys: int = pydantic.Field(32, gt=0, description="different keys; at least pairs")
    values: int = pydantic.Field(32, gt=1, description="different values")

    @pydantic.model_validator(mode="after")
    def _fits(self) -> Self:
        if (least := (2 + self.asks) * self.pairs) > self.length:
            raise ValueError(f"length: expected at least (2 + asks) * pairs = {least}, got {self.length}")
        if self.keys < self.pairs:
            raise ValueError(f"keys: expected at least pairs = {self.pairs}, got {self.keys}")
        if (self.fewest or self.pairs) > self.pairs:
            raise ValueError(f"fewest: expected at most pairs = {self.pairs}, got {self.fewest}")
        return self

    @property
    def vocab_size(self) -> int:
        return 1 + self.keys + self.values

    def draw(self, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        count = int(rng.integers(self.fewest or self.pairs, self.pairs + 1))
        keys = 1 + rng.permutation(self.keys)[:count]
        values = 1 + self.keys + rng.integers(self.values, size=count)
        tokens, targets, mask = np.zeros((3, self.length), np.int32)
        tokens[: 2 * count] = np.stack([keys, values], axis=1).reshape(-1)
        places = 2 * count + rng.permutation(self.length - 2 * count)[: count * self.asks]
        tokens[places], targets[places], mask[places] = np.tile(keys, self.asks), np.tile(values, self.asks), 1
        return tokens, targets, mask
