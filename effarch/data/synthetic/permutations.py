"""State tracking in the symmetric group: the word problem of S5 (2404.08819).

    p1 p2 p3 ...                a permutation of ``items`` things at every token
    p1 p2 p1 p3 p2 p1 ...       their product so far, as one answer of items!

p2 p1 puts p1 first: (p2 p1)(i) = p2(p1(i)). Permutations are numbered in lexicographic order, 0 is the identity. From
five things on the group is not solvable, so that no fixed number of layers with diagonal transitions tracks it. With
``moves: swaps`` the tokens are the identity and the exchanges of two things, which generate the group, and one
Householder reflection does each.
"""

import itertools
from functools import cache
from typing import Literal

import numpy as np
import pydantic

from effarch.data.synthetic.task import Task
from effarch.registry import register


@cache
def symmetric_group(items: int) -> tuple[np.ndarray, np.ndarray]:
    """All permutations ``[items!, items]`` in order, and the table ``[p, q]`` of the products p q."""
    group = np.array(list(itertools.permutations(range(items))))
    products = group[:, group]  # [p, q, i] = p(q(i))
    place = items ** np.arange(items - 1, -1, -1)
    return group, np.searchsorted(group @ place, products @ place)


@register("permutations", kind="task")
class Permutations(Task):
    """The product of the permutations so far."""

    items: int = pydantic.Field(5, ge=2, le=6, description="things that are permuted: n of S_n")
    moves: Literal["all", "swaps"] = pydantic.Field("all", description="tokens: any permutation, or swaps of two")

    @property
    def vocab_size(self) -> int:
        return len(symmetric_group(self.items)[0])

    def draw(self, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        group, products = symmetric_group(self.items)
        allowed = np.arange(len(group))
        if self.moves == "swaps":
            allowed = allowed[(group != np.arange(self.items)).sum(axis=1) <= 2]
        tokens = allowed[rng.integers(len(allowed), size=self.length)]
        targets, product = np.empty_like(tokens), 0
        for t, token in enumerate(tokens):
            targets[t] = product = products[token, product]
        return tokens, targets, np.ones(self.length, np.int32)
