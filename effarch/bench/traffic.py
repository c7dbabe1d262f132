"""Bytes that instructions of a compiled program move between the device's memory and its cores.

What is sliced out of an array or updated in place counts by the size of the slice; what a compiler placed in a memory
of its own (``S(1)`` and on: a TPU's vector memory) counts nothing, and neither does what a fusion hands on as it came:
the buffers of a collective that runs meanwhile, which count where it starts.
"""

from effarch.bench.collectives import on_its_way
from effarch.bench.hlo import Computation, Instruction, Module, Shape

_FREE = {
    "parameter",
    "constant",
    "tuple",
    "get-tuple-element",
    "bitcast",
    "while",
    "conditional",
    "call",
    "after-all",
    "partition-id",
    "replica-id",
    "opt-barrier",
    "optimization-barrier",
    "async-start",
    "async-update",
}
_VIEWS = {"bitcast", "convert", "copy", "reshape", "transpose"}  # within a fusion: element by element
_READS_PART = {"dynamic-slice", "slice", "gather"}


def traffic(module: Module, computation: Computation, instruction: Instruction) -> int:
    """Bytes read and written by one instruction, without what the computations of a loop or a branch move."""
    opcode = instruction.opcode
    if opcode in _FREE or opcode.endswith(("-done", "-update")):
        return 0
    operands = [computation.by_name[name] for name in instruction.operands if name in computation.by_name]
    if opcode == "fusion":
        inner = module.computations.get(instruction.called().get("calls", ""))
        if inner is not None:
            read = sum(_read(module, inner, i, size(given)) for i, given in enumerate(operands))
            return read + _written(module, inner, inner.root, instruction.shapes)
    if opcode in _READS_PART:
        return 2 * size(instruction)
    if opcode == "dynamic-update-slice" and len(operands) > 1:
        return 2 * size(operands[1])
    if opcode == "copy-start":
        return sum(size(given) for given in operands) + bytes_of(instruction.shapes[:1])
    return sum(size(given) for given in operands) + size(instruction)


def size(instruction: Instruction) -> int:
    """Bytes of its result in the device's memory."""
    return bytes_of(instruction.shapes)


def bytes_of(shapes: tuple[Shape, ...]) -> int:
    """Bytes of arrays in the device's memory."""
    return sum(shape.bytes for shape in shapes if shape.space == 0)


def _read(module: Module, inner: Computation, number: int, whole: int) -> int:
    """Bytes of parameter ``number`` that a fused computation reads, at most ``whole``."""
    parameter = inner.parameters.get(number)
    if parameter is None:
        return whole
    found, names = 0, [parameter.name]
    while names:
        name = names.pop()
        for user in inner.instructions:
            if name not in user.operands:
                continue
            first = user.operands[0] == name
            if user.opcode in _READS_PART and first:
                found += sum(shape.bytes for shape in user.shapes)
            elif user.opcode == "dynamic-update-slice" and first:
                continue  # written in place
            elif (user.opcode == "tuple" and user is inner.root) or on_its_way(inner, user):
                continue  # handed on
            elif user.opcode in _VIEWS and user is not inner.root:
                names.append(user.name)
            elif user.opcode == "fusion" and (deeper := module.computations.get(user.called().get("calls", ""))):
                places = [i for i, given in enumerate(user.operands) if given == name]
                found += sum(_read(module, deeper, i, whole) for i in places)
            else:
                return whole
    return min(found, whole)


def _written(module: Module, inner: Computation, root: Instruction, shapes: tuple[Shape, ...]) -> int:
    """Bytes that a fused computation writes: the update alone where it ends in an update in place."""
    if root.opcode == "tuple" and len(root.operands) == len(shapes):
        parts = zip(root.operands, shapes, strict=True)
        return sum(_written(module, inner, inner.by_name[name], (shape,)) for name, shape in parts)
    if root.opcode == "parameter" or on_its_way(inner, root):
        return 0
    last = root
    while last.opcode in _VIEWS and last.operands[0] in inner.by_name:
        last = inner.by_name[last.operands[0]]
    if last.opcode == "dynamic-update-slice":
        update = inner.by_name.get(last.operands[1])
        return min(sum(s.bytes for s in update.shapes), bytes_of(shapes)) if update else bytes_of(shapes)
    if last.opcode == "fusion" and (deeper := module.computations.get(last.called().get("calls", ""))):
        return _written(module, deeper, deeper.root, shapes)
    return bytes_of(shapes)
