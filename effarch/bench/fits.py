"""Growth over the length: exponents with their uncertainty, crossings of two curves, break-even of two states."""

import bisect
import dataclasses
import math
from collections.abc import Callable, Mapping

import numpy as np

FROM = 8192  # tokens from which constants no longer matter


@dataclasses.dataclass(frozen=True)
class Fit:
    """``value ~ T^exponent`` by least squares on logarithms.

    Attributes:
      exponent: the slope. low, high: its 95 % confidence interval; equal to it where two points leave none.
      lengths: the T that went in. per_token: value / T at the largest of them: what a slope alone hides.
    """

    exponent: float
    low: float
    high: float
    lengths: tuple[int, ...]
    per_token: float


def fit(values: Mapping[int, float], start: int = FROM) -> Fit | None:
    """The growth of ``{T: value}`` from ``start`` on, or of the largest half where fewer than two reach that far.

    None for fewer than two positive values.
    """
    known = {t: v for t, v in sorted(values.items()) if v > 0}
    chosen = {t: v for t, v in known.items() if t >= start}
    if len(chosen) < 2:
        chosen = dict(list(known.items())[-max(2, math.ceil(len(known) / 2)) :])
    if len(chosen) < 2:
        return None
    x, y = np.log(np.array(list(chosen), float)), np.log(np.array(list(chosen.values()), float))
    deviation = x - x.mean()
    slope = float(deviation @ y / (deviation @ deviation))
    half = 0.0
    if (freedom := len(x) - 2) > 0:
        from scipy.special import stdtrit

        rest = y - y.mean() - slope * deviation
        half = float(stdtrit(freedom, 0.975) * math.sqrt(rest @ rest / freedom / (deviation @ deviation)))
    last = max(chosen)
    return Fit(slope, slope - half, slope + half, tuple(chosen), chosen[last] / last)


def crossover(ours: Mapping[int, float], theirs: Mapping[int, float]) -> float | None:
    """The T from which ``ours`` stays below ``theirs``, interpolated on logarithms.

    The smallest common T where it always is; infinity where it is not at the largest; None without two common T.
    """
    common = sorted(t for t in ours.keys() & theirs.keys() if ours[t] > 0 and theirs[t] > 0)
    if len(common) < 2:
        return None
    gap = [math.log(ours[t] / theirs[t]) for t in common]
    if gap[-1] >= 0:
        return math.inf
    above = [i for i, g in enumerate(gap) if g >= 0]
    if not above:
        return float(common[0])
    i = above[-1]
    share = gap[i] / (gap[i] - gap[i + 1])
    return math.exp(math.log(common[i]) + share * math.log(common[i + 1] / common[i]))


def break_even(state: Callable[[int], int], cache: Callable[[int], int], limit: int = 2**30) -> float:
    """The smallest context T from which ``state(T) <= cache(T)``, by bisection; infinity if not up to ``limit``."""
    lengths = range(1, limit + 1)
    found = bisect.bisect_left(lengths, True, key=lambda t: state(t) <= cache(t))
    return float(lengths[found]) if found < limit else math.inf
