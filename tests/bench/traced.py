"""What a traced function does, counted from its jaxpr, without compiling: the same under every version of XLA."""

import dataclasses
import math
from collections.abc import Iterator

from jax.extend import core


@dataclasses.dataclass(frozen=True)
class Traced:
    """FLOPs of matrix products (a multiply-add is two), iterations of all scans, and bytes alive at once.

    ``live`` takes every operation for itself, its results held from where they are made to where they are last used:
    more than XLA needs, which fuses, but an array of T x T cannot hide in it.
    """

    flops: int
    loops: int
    live: int


def count(closed: core.ClosedJaxpr) -> Traced:
    """Of a whole function; its arguments are not among what is alive, its results are."""
    return _count(closed.jaxpr)


def _count(jaxpr: core.Jaxpr) -> Traced:
    last = {v: i for i, eqn in enumerate(jaxpr.eqns) for v in eqn.invars if not isinstance(v, core.Literal)}
    kept = {v for v in jaxpr.outvars if not isinstance(v, core.Literal)}
    given = {*jaxpr.invars, *jaxpr.constvars}
    flops = loops = alive = peak = 0
    for i, eqn in enumerate(jaxpr.eqns):
        inner = list(_inner(eqn))
        times = eqn.params["length"] if eqn.primitive.name == "scan" else 1
        loops += times if eqn.primitive.name == "scan" else 0
        if eqn.primitive.name == "cond":
            inner = [max(inner, key=lambda t: (t.flops, t.live))]
        flops += _product(eqn) + times * sum(t.flops for t in inner)
        loops += times * sum(t.loops for t in inner)
        made = sum(_bytes(v) for v in eqn.outvars)
        within = max((t.live for t in inner), default=0)
        # the results of a call are among what lives inside it; a scan stacks them beside
        peak = max(peak, alive + (made + within if times > 1 else max(made, within)))
        alive += sum(_bytes(v) for v in eqn.outvars if v in last or v in kept)
        ended = {v for v in eqn.invars if not isinstance(v, core.Literal) and last[v] == i} - kept - given
        alive -= sum(_bytes(v) for v in ended)
        peak = max(peak, alive)
    return Traced(flops, loops, peak)


def _inner(eqn: core.JaxprEqn) -> Iterator[Traced]:
    for value in eqn.params.values():
        for part in value if isinstance(value, tuple | list) else (value,):
            if isinstance(part, core.ClosedJaxpr):
                yield _count(part.jaxpr)
            elif isinstance(part, core.Jaxpr):
                yield _count(part)


def _bytes(var: core.Var) -> int:
    shape, dtype = getattr(var.aval, "shape", ()), getattr(var.aval, "dtype", None)
    return math.prod(shape) * getattr(dtype, "itemsize", 0)


def _product(eqn: core.JaxprEqn) -> int:
    if eqn.primitive.name == "dot_general":
        (contracted, _), _ = eqn.params["dimension_numbers"]
        left = eqn.invars[0].aval.shape
        return 2 * math.prod(eqn.outvars[0].aval.shape) * math.prod(left[i] for i in contracted)
    if eqn.primitive.name == "conv_general_dilated":
        numbers, kernel = eqn.params["dimension_numbers"], eqn.invars[1].aval.shape
        taps = math.prod(size for i, size in enumerate(kernel) if i != numbers.rhs_spec[0])
        return 2 * math.prod(eqn.outvars[0].aval.shape) * taps
    return 0
