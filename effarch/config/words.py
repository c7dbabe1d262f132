"""Types and values in words, for error lines and for ``--help``."""

import json
import types
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from effarch.config.alternatives import alternatives

_NOUNS = {
    int: "an integer",
    float: "a number",
    bool: "true or false",
    str: "text",
    Path: "a path",
    type(None): "null",
}
_SIGNS = {"gt": ">", "ge": ">=", "lt": "<", "le": "<=", "multiple_of": "a multiple of"}


def expected(annotation: Any, metadata: Iterable[Any] = (), indices: tuple[int, ...] = ()) -> str:
    """What a field takes: ``an integer > 0``, ``one of "a", "b"``, ``a list, each a number``.

    Args:
      annotation: the field's type.
      metadata: constraints that came with it (``annotated_types``).
      indices: lead from the field to an entry of its lists.
    """
    annotation, metadata = unwrap(annotation, metadata)
    arguments = get_args(annotation)
    if indices and is_union(annotation):
        annotation = next((a for a in arguments if get_origin(unwrap(a)[0]) is tuple), annotation)
        annotation, metadata = unwrap(annotation, metadata)
        arguments = get_args(annotation)
    if indices and get_origin(annotation) is tuple:
        index = 0 if Ellipsis in arguments else min(indices[0], len(arguments) - 1)
        return expected(arguments[index], (), indices[1:])
    if choice := alternatives(metadata):
        return f"a {choice.kind}"
    if is_union(annotation):
        return " or ".join(expected(a, metadata if i == 0 else ()) for i, a in enumerate(arguments))
    limits = [f" {sign} {getattr(m, name)}" for m in metadata for name, sign in _SIGNS.items() if hasattr(m, name)]
    return _noun(annotation, " and".join(limits))


def _noun(annotation: Any, limits: str) -> str:
    arguments = get_args(annotation)
    if get_origin(annotation) is Literal:
        options = ", ".join(shown(a) for a in arguments)
        return f"one of {options}" if len(arguments) > 1 else options
    if get_origin(annotation) is tuple:
        if Ellipsis in arguments:
            return f"a list, each {expected(arguments[0])}"
        return f"a list of {len(arguments)}: " + ", ".join(expected(a) for a in arguments)
    if annotation in _NOUNS:
        return _NOUNS[annotation] + limits
    return "a mapping" if hasattr(annotation, "model_fields") else getattr(annotation, "__name__", str(annotation))


def unwrap(annotation: Any, metadata: Iterable[Any] = ()) -> tuple[Any, tuple[Any, ...]]:
    """An annotation without ``Annotated``, and all its metadata."""
    metadata = tuple(metadata)
    if get_origin(annotation) is Annotated:
        annotation, *more = get_args(annotation)
        for item in more:  # pydantic.Field(gt=0) carries its constraints one level down
            metadata += tuple(item.metadata) if hasattr(item, "metadata") else (item,)
    return annotation, metadata


def is_union(annotation: Any) -> bool:
    """Whether the annotation is ``X | Y``."""
    return get_origin(annotation) in (Union, types.UnionType)


def members(annotation: Any) -> set[Any]:
    """The types that a field takes: those of the union, or its only one."""
    annotation, _ = unwrap(annotation)
    return {unwrap(a)[0] for a in get_args(annotation)} if is_union(annotation) else {annotation}


def shown(value: Any) -> str:
    """A value as the user would write it, short."""
    if isinstance(value, Mapping):
        return "a mapping"
    if isinstance(value, list | tuple):
        return "[" + ", ".join(shown(v) for v in value[:8]) + (", ..." if len(value) > 8 else "") + "]"
    if value is None or isinstance(value, bool | str):
        text = json.dumps(value, ensure_ascii=False)
        return text if len(text) <= 80 else text[:76] + '..."'
    if isinstance(value, int | float):
        return repr(value)
    return type(value).__name__
