"""Our variables by name, one layer at a time however the stack holds them: filled from rules, read back by them."""

import dataclasses
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, TypeVar

import jax
import numpy as np
from flax import nnx

from effarch import axes
from effarch.hub.rules import Rule
from effarch.hub.tensors import Tensor
from effarch.models.stack import Layout, Stack
from effarch.parallel.sharding import variable_shardings
from effarch.typing import PyTree

M = TypeVar("M", bound=nnx.Module)
_ALIGNED = 64  # bytes


@dataclasses.dataclass(frozen=True)
class Place:
    """Where a variable lies.

    Attributes:
      path: of the variable in the model's state. row: of its first axis, where layers are stacked; None: all of it.
    """

    path: tuple[Any, ...]
    row: int | None


def places(params: PyTree, layout: Layout | None) -> dict[str, Place]:
    """Every variable by name: ``embedding.table``, ``layers.3.mixer.qkv.q.kernel``.

    Args:
      params: the state of a model, abstract or not. layout: of its stack ``stack``; None where it has none.
    """
    found: dict[str, Place] = {}
    for path in nnx.to_flat_state(params).paths:
        if path[0] != "stack" or layout is None:
            found[".".join(map(str, path))] = Place(path, None)
            continue
        part, number, rest = str(path[1]), int(str(path[2])), ".".join(map(str, path[3:]))
        first = {"prefix": 0, "period": layout.prefix, "suffix": layout.count - layout.suffix}[part] + number
        repeats = layout.repeats if part == "period" else 1
        for row in range(repeats):
            name = f"layers.{first + row * layout.period}.{rest}"
            found[name] = Place(path, row if part == "period" else None)
    return found


def shapes(params: PyTree, named: Mapping[str, Place]) -> dict[str, tuple[int, ...]]:
    """The shape of every named variable, that of one layer where layers are stacked."""
    flat = dict(nnx.to_flat_state(params))
    return {n: tuple(flat[p.path].shape[0 if p.row is None else 1 :]) for n, p in named.items()}


def filled(
    make: Callable[[], M],
    abstract: M,
    rules: Sequence[Rule],
    theirs: Mapping[str, Tensor],
    *,
    rules_table: axes.Rules | None = None,
    done: Callable[[int], None] = lambda _: None,
) -> M:
    """The model that ``make`` would make, its variables read from a checkpoint; checked before (``rules.check``).

    One variable exists on the host at a time, beside those that are where they belong.

    Args:
      make: makes the model. abstract: what it makes, nothing computed. rules: the format. theirs: the tensors.
      rules_table: shards every variable as it is read; None: the default device.
      done: told how many tensors have been read.
    """
    graph, variables = nnx.split(abstract)
    named = places(variables, _layout(abstract))
    flat = dict(nnx.to_flat_state(variables))
    shardings = None if rules_table is None else dict(nnx.to_flat_state(variable_shardings(variables, rules_table)))
    fixed = set(flat) - {named[name].path for rule in rules for name in rule.ours}
    if fixed:  # not trained, and no part of the format: as the model's config makes them
        flat |= jax.jit(lambda: {p: v for p, v in nnx.to_flat_state(nnx.split(make())[1]) if p in fixed})()
    waiting: dict[tuple, tuple[np.ndarray, set[str]]] = {}
    read = 0
    for rule in _in_order(rules, named):
        for name, value in zip(rule.ours, rule.read(*(theirs[t].read() for t in rule.theirs)), strict=True):
            place = named[name]
            variable = flat[place.path]
            if place.path not in waiting:
                missing = {n for n, p in named.items() if p.path == place.path}
                waiting[place.path] = (_empty(variable.shape, variable.dtype), missing)
            array, missing = waiting[place.path]
            array[... if place.row is None else place.row] = value
            missing.discard(name)
            if not missing:
                where = None if shardings is None else shardings[place.path].get_value()
                flat[place.path] = variable.replace(jax.device_put(array, where))
                del waiting[place.path], array
        read += len(rule.theirs)
        done(read)
    return nnx.merge(graph, nnx.from_flat_state(flat.items()))


def _empty(shape: tuple[int, ...], dtype: np.dtype) -> np.ndarray:
    """An array that begins where jax on a CPU takes memory over instead of copying it."""
    size = math.prod(shape) * np.dtype(dtype).itemsize
    room = np.empty(size + _ALIGNED, np.uint8)
    start = -room.ctypes.data % _ALIGNED
    return room[start : start + size].view(dtype).reshape(shape)


def _in_order(rules: Sequence[Rule], named: Mapping[str, Place]) -> list[Rule]:
    """Rules sorted so that those which fill one variable follow one another."""
    first: dict[tuple, int] = {}
    for index, rule in enumerate(rules):
        for name in rule.ours:
            first.setdefault(named[name].path, index)
    return sorted(rules, key=lambda rule: min(first[named[name].path] for name in rule.ours))


def written(model: nnx.Module, rules: Sequence[Rule]) -> Iterator[tuple[str, np.ndarray]]:
    """Their tensors of a model, name and values, rule by rule."""
    variables = nnx.split(model)[1]
    named, flat = places(variables, _layout(model)), dict(nnx.to_flat_state(variables))

    def value(name: str) -> np.ndarray:
        place = named[name]
        array = flat[place.path][...]
        # by a traced index: by a constant one, every row would be a program of its own
        return np.asarray(
            array if place.row is None else jax.lax.dynamic_index_in_dim(array, place.row, keepdims=False)
        )

    for rule in rules:
        found = rule.write(*(value(name) for name in rule.ours))
        yield from zip(rule.theirs, (np.asarray(x, order="C") for x in found), strict=True)


def names_of(model: nnx.Module, kind: type[nnx.Variable] = nnx.Variable) -> dict[str, tuple[int, ...]]:
    """Shape of every variable of a kind by name (all; ``nnx.Param``: what is trained); the model may be abstract."""
    found = nnx.split(model, kind, ...)[1]
    return shapes(found, places(found, _layout(model)))


def _layout(model: nnx.Module) -> Layout | None:
    stack = getattr(model, "stack", None)
    return stack.layout if isinstance(stack, Stack) else None
