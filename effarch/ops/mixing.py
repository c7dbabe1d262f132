"""The mixing matrix of whatever mixes tokens, read off the operation itself.

    o_t = sum_s M_ts v_s        M: [B, H, T, S], one matrix per head, for fixed queries, keys and gates

Every operation here is linear in the values it is given, softmax attention and all five linear recurrences alike. So
column s of M is the output for values that are 1 at token s and 0 elsewhere, and all columns are one call with v = I.
Documents and padding are masked by the operation: M is 0 where it must not look.

`mixes` marks such an operation; inside `watch`, each call of one also leaves its matrix behind. A mixer needs to know
nothing of this: what calls a marked operation once has a mixing matrix.
"""

from collections.abc import Callable, Generator
from contextlib import contextmanager
from contextvars import ContextVar
from functools import wraps
from typing import Any, NamedTuple, ParamSpec, TypeVar

import jax
import jax.numpy as jnp

from effarch.ops.precision import accumulator
from effarch.typing import Array, Float

P = ParamSpec("P")
R = TypeVar("R")


class Mixing(NamedTuple):
    """What a call of an operation left behind.

    Attributes:
      matrix: ``[B, H, T, S]`` in promote(float32, inputs); rows and columns of padding are 0.
      weights: whether the rows are weights: >= 0, of sum 1 (0 where a token sees nothing).
    """

    matrix: Float[Array, "B H T S"]
    weights: bool


_found: ContextVar[list[Mixing] | None] = ContextVar("found", default=None)


@contextmanager
def watch() -> Generator[list[Mixing], None, None]:
    """The matrices of the marked operations that are called inside, in order, once it is left."""
    found: list[Mixing] = []
    token = _found.set(found)
    try:
        yield found
    finally:
        _found.reset(token)


def mixes(*, weights: bool) -> Callable[[Callable[P, R]], Callable[P, R]]:
    """Marks an operation ``op(q, k, v, ...)``, linear in ``v [B, S, H, V]``, that returns o or ``(o, state)``.

    Args:
      weights: whether its rows are weights, see :class:`Mixing`.
    """

    def mark(op: Callable[P, R]) -> Callable[P, R]:
        @wraps(op)
        def marked(*args: P.args, **options: P.kwargs) -> R:
            found = _found.get()
            if found is None:
                return op(*args, **options)
            token = _found.set(None)  # an operation's own operations are its business
            try:
                found.append(Mixing(_matrix(op, args, options), weights))
                return op(*args, **options)
            finally:
                _found.reset(token)

        return marked

    return mark


def _matrix(op: Callable[..., Any], args: tuple, options: dict[str, Any]) -> Float[Array, "B H T S"]:
    q, k, v, *others = args
    batch, time, heads, _ = v.shape
    wide = accumulator(v)
    q, k = jax.tree.map(lambda x: x.astype(wide), (q, k))
    unit = jnp.broadcast_to(jnp.eye(time, dtype=wide)[None, :, None, :], (batch, time, heads, time))
    o = op(q, k, unit, *others, **options)
    return jnp.swapaxes(o[0] if isinstance(o, tuple) else o, 1, 2)
