"""Loops whose length the data decides, and the length that is to be reckoned with.

A plan counts what a compiled program does, loops as often as they run (:mod:`effarch.bench.loops`). Where no text can
say how often, the program carries what its author expects, as a name around the loop.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp

from effarch.typing import Array, Int, PyTree

EXPECTED = "expected_trips_"


def data_loop(
    count: Int[Array, ""], step: Callable[[Array, PyTree], PyTree], start: PyTree, *, expected: float
) -> PyTree:
    """``step(i, carry)`` for i from 0 to ``count - 1``, a traced number.

    Args:
      count: iterations. step: one of them. start: the first carry.
      expected: iterations to be reckoned with, a fraction for the mean of loops around it; nothing computed depends on
        it.
    """
    with jax.named_scope(f"{EXPECTED}{expected:g}"):
        return jax.lax.fori_loop(jnp.int32(0), count, step, start)
