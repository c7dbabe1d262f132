"""Figures of a compiled program: bytes it needs, loops, FLOPs of its matrix products, bytes it moves and sends.

Loops are counted as often as they run, which a compiler's own cost analysis does not; those whose length the data
decides, as often as they are expected to (:mod:`effarch.ops.loops`).
"""

import collections
import dataclasses
from typing import Any

from effarch.bench import products
from effarch.bench.collectives import Collective, collective
from effarch.bench.hlo import Computation, Module, parse
from effarch.bench.loops import trip_count
from effarch.bench.traffic import traffic

_BODIES = {"fusion": ("calls",), "call": ("to_apply",), "async-start": ("calls",)}
_HARMLESS = {  # custom calls that multiply nothing
    "AllocateBuffer",
    "AssumeGatherIndicesInBound",
    "AsyncCollectiveDone",
    "AsyncCollectiveStart",
    "ConcatBitcast",
    "GatherScatterIndicesBitpacked",
    "PrepareAsyncCallDone",
    "PrepareAsyncCallStart",
    "SPMDFullToShardShape",
    "SPMDShardToFullShape",
    "Sharding",
    "TopK",
}


@dataclasses.dataclass(frozen=True)
class Counts:
    """What a program does when it runs once; None where its text does not say how often a loop runs.

    Attributes:
      flops: FLOPs of matrix products by the arithmetic they ask for, see ``products.KINDS``.
      traffic: bytes between memory and cores, each instruction for itself. loops: iterations of all loops together.
      opaque: names of kernels in which products cannot be counted, sorted.
      collectives: what a device says to others, one entry per kind and group of devices.
    """

    flops: dict[str, int] | None
    traffic: int | None
    loops: int | None
    opaque: tuple[str, ...] = ()
    collectives: tuple[Collective, ...] = ()

    @property
    def total_flops(self) -> int | None:
        """FLOPs of all matrix products; None where some of them cannot be counted."""
        return None if self.flops is None or self.opaque else sum(self.flops.values())


@dataclasses.dataclass(frozen=True)
class Memory:
    """Bytes of a compiled program's arguments, results (those that reuse an argument too) and temporaries."""

    arguments: int
    outputs: int
    temporaries: int
    aliased: int

    @property
    def total(self) -> int:
        """What must fit into the device at once."""
        return self.arguments + self.outputs - self.aliased + self.temporaries


def memory(compiled: Any) -> Memory | None:
    """Of a ``jax.stages.Compiled``; None where the platform does not say."""
    stats = compiled.memory_analysis()
    if stats is None:
        return None
    return Memory(
        int(stats.argument_size_in_bytes),
        int(stats.output_size_in_bytes),
        int(stats.temp_size_in_bytes),
        int(stats.alias_size_in_bytes),
    )


def counts(compiled: Any) -> Counts:
    """Of a ``jax.stages.Compiled``, or of the text of one."""
    text = compiled if isinstance(compiled, str) else compiled.as_text()
    if not text:
        return Counts(None, None, None)
    try:
        module = parse(text)
    except ValueError:
        return Counts(None, None, None)
    tally = _Walk(module).of(module.entry)
    if tally.unknown:
        return Counts(None, None, None, tuple(sorted(tally.opaque)))
    said = tuple(Collective(*key, *map(round, found)) for key, found in sorted(tally.said.items()))
    flops = {name: round(count) for name, count in tally.flops.items()}
    return Counts(flops, round(tally.traffic), round(tally.loops), tuple(sorted(tally.opaque)), said)


@dataclasses.dataclass
class _Tally:
    flops: dict[str, float] = dataclasses.field(default_factory=lambda: collections.defaultdict(float))
    traffic: float = 0
    loops: float = 0
    opaque: set[str] = dataclasses.field(default_factory=set)
    said: dict[tuple, tuple[float, float]] = dataclasses.field(default_factory=dict)  # (kind, group): calls, bytes
    unknown: bool = False  # a loop ran an unknown number of times

    def add(self, other: "_Tally", times: float = 1, *, moves: bool = True) -> None:
        for name, count in other.flops.items():
            self.flops[name] += times * count
        self.traffic += times * other.traffic if moves else 0
        self.loops += times * other.loops
        self.opaque |= other.opaque
        for key, (count, size) in other.said.items():
            self.say(key, times * count, times * size)
        self.unknown |= other.unknown

    def say(self, key: tuple, count: float, size: float) -> None:
        before = self.said.get(key, (0, 0))
        self.said[key] = (before[0] + count, before[1] + size)


class _Walk:
    """Adds up computations, each of them once."""

    def __init__(self, module: Module) -> None:
        self.module = module
        self.done: dict[str, _Tally] = {}

    def of(self, computation: Computation) -> _Tally:
        if computation.name not in self.done:
            self.done[computation.name] = self._sum(computation)
        return self.done[computation.name]

    def _sum(self, computation: Computation) -> _Tally:
        tally = _Tally()
        for instruction in computation.instructions:
            opcode, called = instruction.opcode, instruction.called()
            tally.traffic += traffic(self.module, computation, instruction)
            if said := collective(self.module, computation, instruction):
                tally.say((said.kind, said.group), said.count, said.bytes)
            if (found := products.flops(computation, instruction)) is not None:
                tally.flops[products.kind(computation, instruction)] += found
            elif opcode == "custom-call":
                target = _target(instruction.rest)
                if target not in _HARMLESS:
                    tally.opaque.add(target)
            if opcode == "while":
                times = trip_count(self.module, computation, instruction)
                tally.unknown |= times is None
                tally.loops += times or 0
                for name in ("body", "condition"):
                    tally.add(self._named(called.get(name)), times or 0)
            elif opcode == "conditional":
                branches = [self._named(name) for name in called.values()]
                tally.add(max(branches, key=lambda t: (sum(t.flops.values()), t.traffic), default=_Tally()))
            else:
                for attribute in _BODIES.get(opcode, ()):
                    tally.add(self._named(called.get(attribute)), moves=opcode != "fusion")
        return tally

    def _named(self, name: str | None) -> _Tally:
        computation = self.module.computations.get(name or "")
        return _Tally() if computation is None else self.of(computation)


def _target(rest: str) -> str:
    return rest.partition('custom_call_target="')[2].partition('"')[0] or "custom-call"
