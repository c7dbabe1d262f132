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
_MESH = re.compile(
    r"\breplica_groups=mesh\[([^\]]*)\]"  # names and sizes of axes
    r"(?:, device_ids=\((?:\[([\d,]+)\](?:T\(([\d,]+)\))?|([\d,]+))\))?"  # in the order of the mesh, else 0, 1 ...
    r" ?\{([^}]*)\}"  # the axes along which they talk, or 'name':(before)size, a part of one
)
_ALONG = re.compile(r"'([^']+)'(?::\((\d+)\)(\d+))?")
_PAIRS = re.compile(r"\bsource_target_pairs=\{((?:\{\d+,\d+\},?)*)\}")

_STARTS = 'custom_call_target="AsyncCollectiveStart"'
_DONE = 'custom_call_target="AsyncCollectiveDone"'


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
    if on_its_way(computation, instruction):
        return None
    given = [computation.by_name[name] for name in instruction.operands if name in computation.by_name]
    if kind == "collective-permute":
        given = given[:1]  # where it is written to, and offsets, may follow
    if kind == "all-reduce" and computation.name.startswith("all-reduce-scatter"):
        kind = "reduce-scatter"  # as the compiler for TPUs writes it: a fusion that keeps a slice of the sum
    size = sum(shape.bytes for operand in given for shape in operand.shapes)
    return Collective(kind, group(instruction.rest, module.devices), 1, size)


def on_its_way(computation: Computation, instruction: Instruction) -> bool:
    """Whether it is about a collective that began before: the TPU compiler writes one again into every fusion that runs
    meanwhile, and into the one that waits for it.
    """
    again = "chain_id=" in instruction.rest and not any(_STARTS in other.rest for other in computation.instructions)
    return again or _DONE in instruction.rest


def group(attributes: str, devices: int) -> tuple[int, ...]:
    """The devices of the first group that an instruction's attributes name; all of them where they name none.

    Raises:
      ValueError: groups that are written in a way that is not known here.
    """
    if found := _PAIRS.search(attributes):
        pairs = [tuple(map(int, pair.split(","))) for pair in re.findall(r"\{(\d+,\d+)\}", found.group(1))]
        return max(pairs, key=lambda pair: abs(pair[0] - pair[1]), default=())
    if found := _LISTED.search(attributes):
        return _numbers(found.group(1))
    if found := _IOTA.search(attributes):
        shape, dims, order = map(_numbers, found.groups())
        return tuple(_iota(dims, order).reshape(shape[0], -1)[0].tolist())
    if found := _MESH.search(attributes):
        return _of_mesh(*found.groups())
    if (told := re.search(r"\breplica_groups=(\S*)", attributes)) and not told.group(1).startswith("{}"):
        raise ValueError(f"replica_groups: expected a list, an iota or a mesh, got {told.group(1)}")
    return tuple(range(devices))


def _numbers(text: str | None) -> tuple[int, ...]:
    return tuple(int(i) for i in (text or "").split(",") if i)


def _iota(dims: tuple[int, ...], order: tuple[int, ...]) -> np.ndarray:
    """0, 1, ... in the shape of ``dims``, its axes in another order."""
    ids = np.arange(math.prod(dims)).reshape(dims)
    return ids.transpose(order) if order else ids


def _of_mesh(axes: str, dims: str | None, order: str | None, listed: str | None, along: str) -> tuple[int, ...]:
    """The first group: the devices that differ along the chosen axes alone."""
    sizes = {name: int(size) for name, size in re.findall(r"'([^']+)'=(\d+)", axes)}
    count = math.prod(sizes.values())
    ids = np.asarray(_numbers(listed)) if listed else _iota(_numbers(dims) or (count,), _numbers(order))
    talk = {name: (int(before or 1), int(size or sizes[name])) for name, before, size in _ALONG.findall(along)}
    shape, chosen = [], []
    for name, size in sizes.items():
        before, part = talk.get(name, (size, 1))
        shape += [before, part, size // (before * part)]
        chosen += [0, slice(None), 0]
    return tuple(ids.reshape(shape)[tuple(chosen)].ravel().tolist())
