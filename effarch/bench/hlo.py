"""The text of a compiled program, ``compiled.as_text()``, as computations of instructions."""

import dataclasses
import math
import re
from collections.abc import Mapping
from functools import cached_property

BITS = {"pred": 8, "bf16": 16, "token": 0, "opaque": 0, "tuple": 0, "c64": 64, "c128": 128}

_ARRAY = re.compile(r"\b([a-z][a-z0-9]*)\[([\d,<=?]*)\](?:\{([^{}]*)\})?")
_NAME = re.compile(r"%([\w.$:-]+)")
_HEADER = re.compile(r"^(ENTRY )?%?([\w.$:-]+) \(.*\{$")
_DEVICES = re.compile(r"\b(?:num_partitions|replica_count)=(\d+)")
_CALLED = re.compile(r"\b(calls|to_apply|body|condition|true_computation|false_computation)=%?([\w.$:-]+)")
_BRANCHES = re.compile(r"\bbranch_computations=\{([^}]*)\}")


@dataclasses.dataclass(frozen=True)
class Shape:
    """One array: its element type as HLO spells it, its dimensions, and the memory space (0: the device's memory)."""

    dtype: str
    dims: tuple[int, ...]
    space: int = 0

    @property
    def elements(self) -> int:
        """How many there are."""
        return math.prod(self.dims)

    @property
    def bytes(self) -> int:
        """Bytes without the padding of tiles."""
        digits = re.search(r"\d+", self.dtype)  # f32, s4, f8e4m3fn
        bits = BITS.get(self.dtype, int(digits.group()) if digits else 0)
        return -(-self.elements * bits // 8)


@dataclasses.dataclass(frozen=True)
class Instruction:
    """One line: ``%name = shape opcode(operands), rest``.

    Attributes:
      shapes: the arrays of its result, one if it is no tuple. text: what stands between the parentheses.
      operands: names. rest: attributes as text.
    """

    name: str
    opcode: str
    shapes: tuple[Shape, ...]
    operands: tuple[str, ...]
    text: str
    rest: str

    def called(self) -> dict[str, str]:
        """Names of the computations that it calls, by attribute; ``branch0``, ``branch1``... of a conditional."""
        found = dict(_CALLED.findall(self.rest))
        if listed := _BRANCHES.search(self.rest):
            found |= {f"branch{i}": name for i, name in enumerate(_NAME.findall(listed.group(1)))}
        return found

    def dims(self, attribute: str) -> tuple[int, ...]:
        """The integers of ``attribute={0,1}``; () where it is missing."""
        found = re.search(rf"\b{attribute}=\{{([\d,]*)\}}", self.rest)
        return tuple(int(i) for i in found.group(1).split(",") if i) if found else ()


@dataclasses.dataclass(frozen=True)
class Computation:
    """Instructions in the order of the text, the last of which marked ROOT is the result."""

    name: str
    instructions: tuple[Instruction, ...]
    root: Instruction

    @cached_property
    def by_name(self) -> Mapping[str, Instruction]:
        """Each instruction under its name."""
        return {i.name: i for i in self.instructions}

    @cached_property
    def parameters(self) -> Mapping[int, Instruction]:
        """Each parameter under its number."""
        return {int(i.text): i for i in self.instructions if i.opcode == "parameter"}


@dataclasses.dataclass(frozen=True)
class Module:
    """All computations by name, the one where the program starts, and how many devices run it together."""

    computations: Mapping[str, Computation]
    entry: Computation
    devices: int = 1


def parse(text: str) -> Module:
    """Reads a module. Raises ``ValueError`` where the text has no entry computation."""
    computations, entry = {}, None
    name, lines, root, starts = "", [], None, False
    for line in text.splitlines():
        if header := _HEADER.match(line):
            starts, name, lines, root = bool(header.group(1)), header.group(2), [], None
        elif line.startswith("}") and name:
            if lines:
                computations[name] = Computation(name, tuple(lines), root or lines[-1])
                entry = computations[name] if starts else entry
            name = ""
        elif name and (found := _instruction(line)):
            lines.append(found)
            root = found if line.lstrip().startswith("ROOT ") else root
    if entry is None:
        raise ValueError("text: expected the HLO of a compiled program, got none with an ENTRY computation")
    header = text[: text.find("\n")]
    return Module(computations, entry, math.prod(int(count) for count in _DEVICES.findall(header)))


def shapes(text: str) -> tuple[Shape, ...]:
    """The arrays in the text of a shape, in order; those of a tuple one after another."""
    found = []
    for dtype, dims, layout in _ARRAY.findall(text):
        space = re.search(r"S\((\d+)\)", layout)
        sizes = tuple(int(re.sub(r"\D", "", d) or 0) for d in dims.split(",") if d)
        found.append(Shape(dtype, sizes, int(space.group(1)) if space else 0))
    return tuple(found)


def _instruction(line: str) -> Instruction | None:
    left, equals, right = line.strip().removeprefix("ROOT ").partition(" = ")
    if not equals:
        return None
    end = _closing(right, 0) + 1 if right.startswith("(") else right.find(" ")
    shape, call = right[:end], right[end:].lstrip()
    opening = call.find("(")
    if end <= 0 or opening < 0:
        return None
    closing = _closing(call, opening)
    inside = call[opening + 1 : closing]
    operands = tuple(_NAME.findall(inside))
    return Instruction(left.lstrip("%"), call[:opening], shapes(shape), operands, inside, call[closing + 1 :])


def _closing(text: str, opening: int) -> int:
    """Where the parenthesis at ``opening`` is closed; the end of the text if nowhere."""
    depth = 0
    for i in range(opening, len(text)):
        depth += (text[i] == "(") - (text[i] == ")")
        if depth == 0:
            return i
    return len(text)
