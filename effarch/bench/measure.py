"""Time and memory of a program on the machine at hand: compiled once, warmed up, run on fresh random inputs."""

import dataclasses
import re
import statistics
import time
from pathlib import Path
from typing import Any

import jax

from effarch.bench.compiled import memory
from effarch.bench.program import Program, tree_bytes


@dataclasses.dataclass(frozen=True)
class Measured:
    """What came of one program.

    Attributes:
      seconds: of each run, in order; () where it did not run. compile_seconds: tracing not counted.
      argument_bytes, output_bytes, temporary_bytes: of the compiled program; None where the platform does not say.
      resident_bytes: the most that was held while it ran, beyond what the process held with nothing but jax loaded;
        on accelerators the peak of the device. None where the system does not say.
      flops, traffic: useful FLOPs and least bytes, counted by us. tokens: of a call. state_bytes: per row.
      reason: why it did not run, or did not run as often as asked for; "" otherwise.
      cold: the one run was not preceded by another: first touches of memory are in its time.
    """

    seconds: tuple[float, ...] = ()
    compile_seconds: float | None = None
    argument_bytes: int | None = None
    output_bytes: int | None = None
    temporary_bytes: int | None = None
    resident_bytes: int | None = None
    flops: int | None = None
    traffic: int | None = None
    tokens: int | None = None
    state_bytes: int | None = None
    reason: str = ""
    cold: bool = False


def measure(program: Program, *, repeats: int, time_limit: float, memory_limit: float | None) -> Measured:
    """Compiles and times a program.

    Args:
      program: what to measure. repeats: runs that count, after one to warm up.
      time_limit: seconds after which no further run starts; at least one run is timed.
      memory_limit: bytes of arguments, results and temporaries beyond which it does not run; None: what is free here.
    """
    draw = jax.jit(program.arguments)
    shapes = program.shapes()
    found = Measured(
        flops=program.flops,
        traffic=program.bytes,
        tokens=program.tokens,
        state_bytes=program.state_bytes,
    )
    lowered = jax.jit(program.run, donate_argnums=program.donated).lower(*shapes)
    start = time.perf_counter()
    compiled = lowered.compile()
    found = dataclasses.replace(found, compile_seconds=time.perf_counter() - start)
    needed = tree_bytes(shapes)
    if (held := memory(compiled)) is not None:
        needed = held.total
        found = dataclasses.replace(
            found,
            argument_bytes=held.arguments,
            output_bytes=held.outputs,
            temporary_bytes=held.temporaries,
        )
    limit = free_bytes() if memory_limit is None else memory_limit
    if limit is not None and needed > limit:
        return dataclasses.replace(found, reason=f"needs {needed} bytes, more than the {int(limit)} there are")
    forget_peak()
    before = resident(peak=False)
    seconds, reason, began = [], "", time.perf_counter()
    for number in range(repeats + 1):
        arguments = jax.block_until_ready(draw(jax.random.key(number)))
        start = time.perf_counter()
        results = jax.block_until_ready(compiled(*arguments))
        seconds.append(time.perf_counter() - start)
        del arguments, results
        spent = time.perf_counter() - began
        if spent > time_limit and number < repeats:
            if number:
                reason = f"{number} of {repeats} runs: each takes {seconds[-1]:.3g} s"
                break
            if spent + seconds[0] > 2 * time_limit:  # the warm-up alone took all the time there is
                reason = "timed once, without a warm-up"
                break
    after = resident(peak=True)
    peak = None if after is None or before is None else max(after - before, 0)
    return dataclasses.replace(
        found,
        seconds=tuple(seconds[1:] or seconds),
        resident_bytes=device_peak() or peak,
        reason=reason,
        cold=len(seconds) == 1,
    )


def free_bytes() -> int | None:
    """Bytes that programs may take here; None where the system does not say."""
    stats = jax.local_devices()[0].memory_stats()
    if stats and "bytes_limit" in stats:
        return int(stats["bytes_limit"])
    return _field("/proc/meminfo", "MemAvailable")


def device_peak() -> int | None:
    """Peak bytes of an accelerator since the process began; None on a CPU."""
    stats = jax.local_devices()[0].memory_stats()
    return int(stats["peak_bytes_in_use"]) if stats and "peak_bytes_in_use" in stats else None


def resident(*, peak: bool) -> int | None:
    """Bytes of this process that are in memory, now or at most since :func:`forget_peak`; None off Linux."""
    return _field("/proc/self/status", "VmHWM" if peak else "VmRSS")


def forget_peak() -> None:
    """Lets the peak start from now: what compiling took is not what running takes."""
    try:
        Path("/proc/self/clear_refs").write_text("5")
    except OSError:
        pass  # then the peak is that of the whole process


def _field(file: str, name: str) -> int | None:
    try:
        found = re.search(rf"^{name}:\s+(\d+) kB", Path(file).read_text(), re.MULTILINE)
    except OSError:
        return None
    return int(found[1]) * 1024 if found else None


def spread(seconds: Any) -> float:
    """Half the range between the quartiles, relative to the median: the noise of a measurement; 0 of a single one."""
    if len(seconds) < 2:
        return 0.0
    low, middle, high = statistics.quantiles(seconds, n=4)
    return (high - low) / 2 / middle
