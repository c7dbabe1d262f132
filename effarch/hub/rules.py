"""Which of our parameters are made of which of their tensors, both ways: a checkpoint's format is a list of rules.

Parameters are named by their path, layers counted from 0 however the stack holds them: ``layers.3.mixer.qkv.q.kernel``.
"""

import dataclasses
from collections.abc import Callable, Iterable, Mapping, Sequence

import numpy as np

from effarch.config import UserError

Shape = tuple[int, ...]


@dataclasses.dataclass(frozen=True)
class Rule:
    """Some of our parameters, some of their tensors, and how the ones become the others.

    Attributes:
      ours, theirs: names. shapes: of their tensors.
      read: their arrays, in order -> ours. write: the inverse, bit for bit.
    """

    ours: tuple[str, ...]
    theirs: tuple[str, ...]
    shapes: tuple[Shape, ...]
    read: Callable[..., Sequence[np.ndarray]]
    write: Callable[..., Sequence[np.ndarray]]


def same(ours: str, theirs: str, shape: Shape, *, as_shape: Shape | None = None) -> Rule:
    """One tensor as it is; ``as_shape``: theirs, where it holds the same numbers in the same order otherwise."""
    wanted = shape if as_shape is None else as_shape
    return Rule((ours,), (theirs,), (wanted,), lambda x: (x.reshape(shape),), lambda x: (x.reshape(wanted),))


def linear(ours: str, theirs: str, shape: Shape, *, contracted: int = 1, transposed: bool = True) -> Rule:
    """A projection: torch's ``weight [out, in]`` and our kernel ``[*in, *out]``.

    Args:
      ours, theirs: names. shape: of our kernel, whose first ``contracted`` dims are summed over.
      transposed: false where they keep ``[in, out]`` (GPT-2).
    """
    into, out = int(np.prod(shape[:contracted])), int(np.prod(shape[contracted:]))
    if not transposed:
        return same(ours, theirs, shape, as_shape=(into, out))
    return Rule(
        (ours,),
        (theirs,),
        ((out, into),),
        lambda x: (x.T.reshape(shape),),
        lambda x: (x.reshape(into, out).T,),
    )


def concatenated(ours: Sequence[str], theirs: str, shapes: Sequence[Shape], *, transposed: bool = True) -> Rule:
    """Several projections of ours (kernels ``[in, *out]``) in one weight of theirs, one after the other: ``[sum, in]``.

    Args:
      ours: names, in their order. theirs: name. shapes: of our kernels, whose first dim is summed over.
      transposed: false where they keep ``[in, sum]`` (GPT-2).
    """
    widths = [int(np.prod(shape[1:])) for shape in shapes]
    into, ends = shapes[0][0], np.cumsum(widths)[:-1]

    def read(x: np.ndarray) -> list[np.ndarray]:
        parts = np.split(x.T if transposed else x, ends, axis=1)
        return [part.reshape(shape) for part, shape in zip(parts, shapes, strict=True)]

    def write(*xs: np.ndarray) -> tuple[np.ndarray]:
        whole = np.concatenate([x.reshape(into, -1) for x in xs], axis=1)
        return (whole.T if transposed else whole,)

    shape = (sum(widths), into) if transposed else (into, sum(widths))
    return Rule(tuple(ours), (theirs,), (shape,), read, write)


def interleaved(ours: Sequence[str], theirs: str, shape: Shape) -> Rule:
    """Projections of ours, all of one shape, in one weight of theirs head by head (GPT-NeoX): ``[H * n * K, in]``.

    Args:
      ours: n names, in their order. theirs: name.
      shape: of each of ours: a kernel ``[in, H, K]``, or a bias ``[H, K]``, which they have as a vector.
    """
    count, (heads, width) = len(ours), shape[-2:]
    into = shape[:-2]

    def read(x: np.ndarray) -> list[np.ndarray]:
        parts = x.reshape(heads, count, width, *into)
        return [np.moveaxis(parts[:, i], 2, 0) if into else parts[:, i] for i in range(count)]

    def write(*xs: np.ndarray) -> tuple[np.ndarray]:
        parts = np.stack([np.moveaxis(x, 0, 2) if into else x for x in xs], axis=1)
        return (parts.reshape(heads * count * width, *into),)

    return Rule(tuple(ours), (theirs,), ((heads * count * width, *into),), read, write)


def concatenated_biases(ours: Sequence[str], theirs: str, shapes: Sequence[Shape]) -> Rule:
    """Several biases of ours ``[*out]`` in one vector of theirs, one after the other."""
    widths = [int(np.prod(shape)) for shape in shapes]
    ends = np.cumsum(widths)[:-1]

    def read(x: np.ndarray) -> list[np.ndarray]:
        return [part.reshape(shape) for part, shape in zip(np.split(x, ends), shapes, strict=True)]

    def write(*xs: np.ndarray) -> tuple[np.ndarray]:
        return (np.concatenate([x.reshape(-1) for x in xs]),)

    return Rule(tuple(ours), (theirs,), ((sum(widths),),), read, write)


def check(
    rules: Iterable[Rule],
    ours: Iterable[str],
    theirs: Mapping[str, Shape],
    *,
    where: str,
    ignored: Iterable[str] = (),
    fixed: Iterable[str] = (),
) -> None:
    """All that must hold before anything is read.

    Args:
      rules: the format. ours: names of all our parameters. theirs: shapes of all tensors there are.
      where: named in errors. ignored: names of tensors that may be there and say nothing.
      fixed: names of variables of ours that are not trained; the rules may leave them out.

    Raises:
      UserError: tensors that are missing, left over or of another shape, at most five lines.
      RuntimeError: the rules do not make every parameter of ours once (a mistake of ours).
    """
    rules = list(rules)
    made = [name for rule in rules for name in rule.ours]
    wanted_names = set(ours) | (set(fixed) & set(made))
    if sorted(made) != sorted(wanted_names):
        wrong = sorted(set(made) ^ wanted_names) or sorted({n for n in made if made.count(n) > 1})
        raise RuntimeError(f"rules: expected every parameter once, not so: {wrong[:5]}")
    problems = []
    wanted: dict[str, Shape] = {}
    for rule in rules:
        wanted |= dict(zip(rule.theirs, rule.shapes, strict=True))
    for name, shape in wanted.items():
        if name not in theirs:
            problems.append(f"{where}: tensor {name} is missing")
        elif theirs[name] != shape:
            problems.append(f"{where}: tensor {name}: expected shape {list(shape)}, got {list(theirs[name])}")
    problems += [f"{where}: tensor {n} belongs to nothing" for n in sorted(set(theirs) - set(wanted) - set(ignored))]
    if problems:
        more = [f"{where}: {len(problems) - 5} more such tensors"] if len(problems) > 5 else []
        raise UserError(*problems[:5], *more)
