"""How often the loops of a compiled program run, from what the compiler wrote down or from their conditions."""

import re

from effarch.bench.hlo import Computation, Instruction, Module
from effarch.ops.loops import EXPECTED

_EXPECTED = re.compile(rf'op_name="[^"]*{EXPECTED}([\d.e+]+)\)*/while"')
_KNOWN = re.compile(r'"known_trip_count":\{"n":"(\d+)"\}')
_SAME = {"copy", "bitcast", "convert", "copy-start", "copy-done", "optimization-barrier"}  # a scalar passes unchanged


def trip_count(module: Module, around: Computation, loop: Instruction) -> int | float | None:
    """Iterations of the ``while`` instruction ``loop`` of ``around``; None where the text does not say.

    The compilers for CPU and GPU write the count beside the loop. Elsewhere a counter is compared with a bound that
    stands in the condition or goes around unchanged, and the step is read off the body. Of loops whose length the data
    decides, what :func:`effarch.ops.loops.data_loop` was told to expect.
    """
    if known := _KNOWN.search(loop.rest):
        return int(known.group(1))
    if expected := _EXPECTED.search(loop.rest):
        return float(expected.group(1))
    called = loop.called()
    condition, body = module.computations.get(called.get("condition", "")), module.computations.get(called["body"])
    if condition is None or body is None:
        return None
    compared = _comparison(module, condition)
    if compared is None:
        return None
    direction, left, right = compared
    if isinstance(left, int):
        direction, left, right = {"GT": "LT", "GE": "LE", "LT": "GT", "LE": "GE"}.get(direction, direction), right, left
    if not isinstance(left, str):
        return None
    index = int(left)
    start, step = _carried(around, loop, index), _step(body, index)
    bound = right if isinstance(right, int) else _carried(around, loop, int(right)) if right is not None else None
    if start is None or bound is None or not step:
        return None
    if direction == "NE":
        direction = "LT" if step > 0 else "GT"
    span = {"LT": bound - start, "LE": bound - start + 1, "GT": start - bound, "GE": start - bound + 1}.get(direction)
    if span is None or (step > 0) != (direction in ("LT", "LE")):
        return None
    return max(0, -(-span // abs(step)))


def _constant(instruction: Instruction | None) -> int | None:
    if instruction is None or instruction.opcode != "constant":
        return None
    return int(instruction.text) if re.fullmatch(r"-?\d+", instruction.text) else None


def _through(computation: Computation, name: str) -> Instruction | None:
    """The instruction behind copies and the like."""
    found = computation.by_name.get(name)
    while found is not None and found.opcode in _SAME and found.operands:
        found = computation.by_name.get(found.operands[0])
    return found


def _comparison(module: Module, condition: Computation) -> tuple[str, int | str | None, int | str | None] | None:
    """Direction and both sides of the condition: an integer, or as text the index of what is carried."""

    def side(computation: Computation, name: str, given: tuple[int | str | None, ...]) -> int | str | None:
        found = _through(computation, name)
        if found is None:
            return None
        if found.opcode == "parameter" and given:
            return given[int(found.text)]
        if found.opcode == "get-tuple-element":
            index = re.search(r"\bindex=(\d+)", found.rest)
            return index.group(1) if index else None
        return _constant(found)

    computation, root, given = condition, condition.root, ()
    while root.opcode in ("fusion", "call"):
        given = tuple(side(computation, name, given) for name in root.operands)
        called = root.called()
        inner = module.computations.get(called.get("calls", called.get("to_apply", "")))
        if inner is None:
            return None
        computation, root = inner, inner.root
    direction = re.search(r"\bdirection=(\w+)", root.rest)
    if root.opcode != "compare" or direction is None or len(root.operands) != 2:
        return None
    left, right = (side(computation, name, given) for name in root.operands)
    return direction.group(1), left, right


def _carried(around: Computation, loop: Instruction, index: int) -> int | None:
    """The constant that goes into the loop at ``index`` of what it carries."""
    carried = _through(around, loop.operands[0]) if loop.operands else None
    if carried is None or carried.opcode != "tuple" or index >= len(carried.operands):
        return None
    return _constant(_through(around, carried.operands[index]))


def _step(body: Computation, index: int) -> int | None:
    """What one iteration adds to the counter; 1 where it cannot be read, as all loops of jax do."""
    if body.root.opcode != "tuple" or index >= len(body.root.operands):
        return 1
    added = _through(body, body.root.operands[index])
    if added is None or added.opcode != "add":
        return 1
    steps = [x for x in (_constant(_through(body, name)) for name in added.operands) if x is not None]
    return steps[0] if len(steps) == 1 else 1
