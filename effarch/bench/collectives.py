"""What devices of a compiled program say to each other: kind, participants, bytes.

Bytes are those of the operands: what one device puts in, per call. What it sends then depends on the algorithm; the
ring's, which no other beats on bandwidth, is ``sent``.
"""

import dataclasses
import math
import re

import numpy as np

from effarch.bench.hlo import Computation, Instruction, Module

KINDS = (
    "all-gather",
    "reduce-scatter",
    "all-reduce",
    "all-to-all",
    "collective-permute",
    "ragged-all-to-all",
    "collective-broadcast",
)
_LISTED = re.compile(r"\breplica_groups=\{\{([\d,]*)\}")
_IOTA = re.compile(r"\breplica_groups=\[([\d,]+)\]<=\[([\d,]+)\](?:T\(([\d,]+)\))?")
_MESH = re.compile(r"\breplica_groups=mesh\[([^\]]*)\] ?\{([^}]*)\}")
_PAIRS = re.compile(r"\bsource_target_pairs=\{((?:\{\d+,\d+\},?)*)\}")

_STARTS = 'custom_call_target="AsyncCollectiveStart"'


@dataclasses.dataclass(frozen=True)
class Collective:
    """Calls of one kind among one set of devices.

    Attributes:
      kind: one of ``KINDS``. group: numbers of the devices of the first group; of a permutation, those of the pair that
        is farthest apart.
      count: calls. bytes: that one device puts in, all calls together.
    """

    kind: str
    group: tuple[int, ...]
    count: int
    bytes: int

    @property
    def sent(self) -> int:
        """Bytes that one device sends, all calls together, on a ring of n: an all-gather n - 1 times what it has."""
        n = max(len(self.group), 1)
        if self.kind == "collective-permute":
            return self.bytes
        if self.kind in ("all-gather", "collective-broadcast"):
            return self.bytes * (n - 1) if self.kind == "all-gather" else self.bytes
        return self.bytes * (n - 1) // n * (2 if self.kind == "all-reduce" else 1)

    def crosses(self, domain: int) -> bool:
        """Whether its devices are not all among the same ``domain`` consecutive ones."""
        return len({device // domain for device in self.group}) > 1


def collective(module: Module, computation: Computation, instruction: Instruction) -> Collective | None:
    """What one instruction is, if it is one; what waits for it (``-done``) is none."""
    kind = instruction.opcode.removesuffix("-start")
    if kind not in KINDS:
        return None
    if "chain_id=" in instruction.rest and not any(_STARTS in other.rest for other in computation.instructions):
        return None  # the compiler for TPUs writes it again into every fusion that runs meanwhile
    given = [computation.by_name[name] for name in instruction.operands if name in computation.by_name]
    if kind == "collective-permute":
        given = given[:1]  # where it is written to, and offsets, may follow
    if kind == "all-reduce" and computation.name.startswith("all-reduce-scatter"):
        kind = "reduce-scatter"  # as the compiler for TPUs writes it: a fusion that keeps a slice of the sum
    size = sum(shape.bytes for operand in given for shape in operand.shapes)
    return Collective(kind, group(instruction.rest, module.devices), 1, size)


def group(attributes: str, devices: int) -> tuple[int, ...]:
    """The devices of the first group that an instruction's attributes name; all of them where they name none."""
    if found := _PAIRS.search(attributes):
        pairs = [tuple(map(int, pair.split(","))) for pair in re.findall(r"\{(\d+,\d+)\}", found.group(1))]
        return max(pairs, key=lambda pair: abs(pair[0] - pair[1]), default=())
    if found := _LISTED.search(attributes):
        return tuple(int(i) for i in found.group(1).split(",") if i)
    if found := _IOTA.search(attributes):
        shape, dims, order = ([int(i) for i in text.split(",")] if text else [] for text in found.groups())
        ids = np.arange(math.prod(dims)).reshape(dims)
        ids = ids.transpose(order) if order else ids
        return tuple(int(i) for i in ids.reshape(shape[0], -1)[0])
    if found := _MESH.search(attributes):
        sizes = dict(re.findall(r"'([^']+)'=(\d+)", found.group(1)))
        chosen = re.findall(r"'([^']+)'", found.group(2))
        ids = np.arange(math.prod(map(int, sizes.values()))).reshape([int(size) for size in sizes.values()])
        return tuple(int(i) for i in ids[tuple(slice(None) if name in chosen else 0 for name in sizes)].ravel())
    return tuple(range(devices))
