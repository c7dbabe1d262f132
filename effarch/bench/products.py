"""Matrix products in a compiled program: their FLOPs (a multiply-add is two) and the arithmetic they ask for."""

import math
import re

from effarch.bench.hlo import Computation, Instruction, Shape

KINDS = ("bf16", "f32", "f32_highest")


def flops(computation: Computation, instruction: Instruction) -> int | None:
    """FLOPs of a dot, a convolution, or a library's matrix product; None for other instructions, 2 a multiply-add."""
    operands = [computation.by_name.get(name) for name in instruction.operands[:2]]
    if instruction.opcode not in ("dot", "convolution", "custom-call") or None in operands or len(operands) < 2:
        return None
    left, right = (given.shapes[0] for given in operands if given is not None)
    out = instruction.shapes[0]
    if instruction.opcode == "convolution":
        return _convolution(instruction, left, right, out)
    contracted = instruction.dims("lhs_contracting_dims")
    if instruction.opcode == "custom-call":
        given = re.search(r'"lhs_contracting_dimensions":\[([^\]]*)\]', instruction.rest)
        if given is None:
            return None
        contracted = tuple(int(i) for i in re.findall(r"\d+", given.group(1)))
    return 2 * out.elements * math.prod(left.dims[i] for i in contracted)


def _convolution(instruction: Instruction, left: Shape, right: Shape, out: Shape) -> int | None:
    """TPU programs write products as convolutions, batches as dilated space: only positions that meet count."""
    labels = re.search(r"dim_labels=(\w+)_(\w+)->(\w+)", instruction.rest)
    if labels is None:
        return None
    lhs, rhs, result = labels.groups()
    total = 2 * out.dims[result.index("b")] * out.dims[result.index("f")] * right.dims[rhs.index("i")]
    window = dict(re.findall(r"(\w+)=([\w\-]+)", (re.search(r"window=\{([^}]*)\}", instruction.rest) or [""])[0]))
    for place, label in enumerate(sorted(c for c in result if c.isdigit())):

        def of(name: str, default: str, place: int = place) -> str:
            return window[name].split("x")[place] if name in window else default

        stride, dilate, spread = int(of("stride", "1")), int(of("lhs_dilate", "1")), int(of("rhs_dilate", "1"))
        pad = int(of("pad", "0_0").partition("_")[0])
        given, taps, outputs = (s.dims[x.index(label)] for s, x in ((left, lhs), (right, rhs), (out, result)))
        total *= _meetings(given, taps, outputs, stride, dilate, spread, pad)
    return total


def _meetings(given: int, taps: int, outputs: int, stride: int, dilate: int, spread: int, pad: int) -> int:
    """Pairs of an output and a tap that meet an element of the input and no hole or padding."""
    if dilate == 1 and pad == 0 and (outputs - 1) * stride + (taps - 1) * spread < given:
        return outputs * taps
    (few, few_step), (many, many_step) = sorted([(taps, spread), (outputs, stride)])
    found = 0
    for i in range(few):  # i few_step + j many_step - pad in 0, dilate, 2 dilate ... (given - 1) dilate
        offset = i * few_step - pad
        low = max(0, -(offset // many_step))
        high = min(many - 1, ((given - 1) * dilate - offset) // many_step)
        common = math.gcd(many_step, dilate)
        if offset % common or high < low:
            continue
        period = dilate // common  # of the j that meet an element
        first = -offset // common * pow(many_step // common, -1, period) % period
        found += (high - first) // period - (low - 1 - first) // period
    return found


def kind(computation: Computation, instruction: Instruction) -> str:
    """What its inputs and precision ask of the hardware: one of ``KINDS``.

    "bf16" is any 16-bit input or narrower; "f32" leaves the passes to the hardware's default; "f32_highest" wants the
    precision of float32.
    """
    operands = [computation.by_name.get(name) for name in instruction.operands[:2]]
    if any(given is not None and given.shapes[0].dtype not in ("f32", "f64", "c64", "c128") for given in operands):
        return "bf16"
    precision = re.search(r"operand_precision=\{([^}]*)\}", instruction.rest)
    exact = precision is not None and "high" in precision.group(1)
    return "f32_highest" if exact or "algorithm=dot_f32_f32_f32" in instruction.rest else "f32"
