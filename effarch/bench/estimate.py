"""A program compiled for a target: memory as its compiler allots it, time as a roofline of what was counted."""

import dataclasses
import re
import time
from collections.abc import Callable, Iterable, Mapping
from typing import Any, Protocol

from effarch.bench.collectives import Collective
from effarch.bench.compiled import Counts, Memory, counts, memory
from effarch.bench.targets import Target
from effarch.ops.platform import tracing_for


@dataclasses.dataclass(frozen=True)
class Built:
    """What a compiler made of a program.

    Attributes:
      memory: bytes per device, None where it refused or does not say. counts: what a device does, None where it refused
        to compile. seconds: that compiling took, here. needed: bytes per device; None where nobody says.
      fits: whether that is what a device has.
    """

    memory: Memory | None
    counts: Counts | None
    seconds: float
    needed: int | None
    fits: bool


def build(target: Target, lowered: Any) -> Built:
    """Compiles a ``jax.stages.Lowered``; one that needs more memory than there is does not fit, and raises nothing."""
    import jax

    start = time.perf_counter()
    try:
        compiled = lowered.compile()
    except jax.errors.JaxRuntimeError as error:
        if "RESOURCE_EXHAUSTED" not in str(error):
            raise
        return Built(None, None, time.perf_counter() - start, needed(str(error)), False)
    seconds = time.perf_counter() - start
    held = memory(compiled)
    fits = held is None or held.total <= target.memory
    return Built(held, counts(compiled), seconds, None if held is None else held.total, fits)


@dataclasses.dataclass(frozen=True)
class Estimate:
    """What compiling a program for a target told.

    Attributes:
      target: its name. memory: bytes as the compiler allots them, None where it refused or does not say.
      counts: what the compiled program does. flops: of all matrix products. seconds: estimated, the roofline.
      bound: "compute" or "memory", whichever takes longer.
      source: "compiled" where the program was counted, "formula" where kernels or loops of a length that is decided at
        run time hide what it does; then its useful FLOPs and, where loops do, its least traffic stand in.
      compile_seconds: measured, here. reason: why it would not run, "" if it would.
    """

    target: str
    memory: Memory | None
    counts: Counts | None
    flops: int | None
    seconds: float | None
    bound: str
    source: str
    compile_seconds: float
    reason: str = ""


class Compilable(Protocol):
    """What is compiled: see ``effarch.bench.program.Program``."""

    run: Callable[..., Any]
    flops: int | None
    bytes: int | None

    def arguments(self, key: Any) -> tuple[Any, ...]:
        """Inputs, drawn with ``key``; traced for their shapes only."""
        ...


def compile_for(target: Target, program: Compilable, *, donated: tuple[int, ...] = ()) -> Estimate:
    """Compiles one program for one device of the target, in a process with its ``environment()``.

    Args:
      target: from ``targets.get``. program: its ``run`` and the shapes of its ``arguments``.
      donated: numbers of the arguments whose memory results may take.

    Raises:
      UserError: the compiler is not installed.
    """
    import jax

    place = jax.sharding.SingleDeviceSharding(target.device())
    arguments = jax.tree.map(
        lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=place),
        jax.eval_shape(program.arguments, jax.random.key(0)),
    )

    def run(*given: Any) -> Any:
        with tracing_for(target.traced):
            return program.run(*given)

    built = build(target, jax.jit(run, donate_argnums=donated).lower(*arguments))
    reason = "" if built.fits else does_not_fit(built.needed)
    if built.counts is None:
        return Estimate(target.name, None, None, program.flops, None, "", "", built.seconds, reason)
    done = built.counts
    flops, traffic, source = done.flops, done.traffic, "compiled"
    if done.total_flops is None:
        flops = None if program.flops is None else {_arithmetic(arguments): program.flops}
        traffic, source = (program.bytes if traffic is None else traffic), "formula"
    took, bound = roofline(target, flops, traffic) if built.fits else (None, "")
    total = None if flops is None else sum(flops.values())
    return Estimate(target.name, built.memory, done, total, took, bound, source, built.seconds, reason)


def _arithmetic(arguments: Any) -> str:
    """What products of these ask for where they cannot be seen."""
    import jax

    return "bf16" if any(x.dtype.itemsize == 2 for x in jax.tree.leaves(arguments)) else "f32_highest"


def times(
    target: Target, flops: Mapping[str, int] | None, traffic: int | None, collectives: Iterable[Collective] = ()
) -> dict[str, float]:
    """Seconds at the target's peaks by what takes them; empty where something was not counted, or no peak is stated.

    ``network`` is what collectives send on all links of a device at once, at the slower of two speeds where they reach
    beyond its ``domain``; it is there for more than one device.
    """
    if flops is None or traffic is None or not target.peaks:
        return {}
    compute = sum(count / target.peaks[kind] for kind, count in flops.items())
    found = {"compute": compute, "memory": traffic / target.bandwidth}
    if target.chips > 1:
        speeds = ((c.sent, target.network if c.crosses(target.domain) else target.link) for c in collectives)
        found["network"] = sum(sent / speed for sent, speed in speeds)
    return found


def roofline(
    target: Target, flops: Mapping[str, int] | None, traffic: int | None, collectives: Iterable[Collective] = ()
) -> tuple[float | None, str]:
    """The longest of :func:`times`, as if all went on at once, and which it is; None where something is unknown."""
    found = times(target, flops, traffic, collectives)
    if not found:
        return None, ""
    bound = max(found, key=lambda name: found[name])
    return found[bound], bound


_SIZE = re.compile(r"\b(\d+(?:\.\d+)?)([KMGTP]?)(?:i?B)?\b(?=[\s),.;]|$)")


def needed(message: str) -> int | None:
    """Bytes that a compiler's RESOURCE_EXHAUSTED asks for: the largest size that it speaks of first."""
    first = message.split("Largest program allocations")[0].split("\n\n")[0]
    factors = {"K": 2**10, "M": 2**20, "G": 2**30, "T": 2**40, "P": 2**50}
    sizes = [float(number) * factors[unit] for number, unit in _SIZE.findall(first) if unit]
    return int(max(sizes)) if sizes else None


def does_not_fit(bytes_needed: int | None) -> str:
    """The reason, with the bytes where they are known."""
    return "does not fit" if bytes_needed is None else f"does not fit ({bytes_needed} bytes)"
