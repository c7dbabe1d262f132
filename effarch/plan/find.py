"""The largest size that fits: doubling until one does not, then bisection between the two."""

import dataclasses
from collections.abc import Callable

LIMIT = 2**24  # nobody has asked for more rows or tokens


@dataclasses.dataclass(frozen=True)
class Found:
    """Attributes: largest: that fits, None if none does. tried: every size that was compiled, and whether it fits."""

    largest: int | None
    tried: tuple[tuple[int, bool], ...]


def largest(fits: Callable[[int], bool], *, start: int, unit: int, limit: int = LIMIT) -> Found:
    """The largest multiple of ``unit`` that fits, taken for granted that whatever is smaller fits, too.

    Args:
      fits: compiles one size; called once for each. start: where to begin. unit: what sizes are multiples of.
      limit: nothing larger is tried.
    """
    tried: dict[int, bool] = {}

    def ask(units: int) -> bool:
        tried[units * unit] = fits(units * unit)
        return tried[units * unit]

    low, high = 0, max(1, start // unit)
    while high * unit <= limit and ask(high):
        low, high = high, 2 * high
    high = min(high, limit // unit + 1)  # does not fit, or is beyond the limit
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if ask(middle) else (low, middle)
    return Found(low * unit or None, tuple(sorted(tried.items())))
