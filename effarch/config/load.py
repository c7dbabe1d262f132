"""A config from a YAML file and ``key=value`` overrides, and back to YAML; all problems in one error."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import pydantic
import yaml

from effarch.config.base import Config, UserError, explained
from effarch.config.words import shown
from effarch.config.yaml import TypedText, read, write

C = TypeVar("C", bound=Config)


def load(schema: type[C], path: str | Path | None = None, overrides: Sequence[str] = ()) -> C:
    """The config that a file and the overrides on top of it describe.

    Overrides are ``a.b.c=value``, the value in YAML (``mixers=[gla,retnet]``, ``lr=1e-3``, ``x=null``); the key of a
    list's entry is its index (``stages.0.steps=10``); the last of two for the same key wins.

    An override that changes a ``type`` (``student.mixer.type=retnet``) drops what the *file* says beside it, because
    those keys belong to the old type; what other overrides say beside it stays, in any order.

    Args:
      schema: the config's class.
      path: a YAML file; None for no file.
      overrides: ``key=value``, dashes in keys count as underscores.

    Raises:
      UserError: with one line for every problem in the file, the overrides and the values.
    """
    problems: list[str] = []
    data: Any = {}
    if path is not None:
        try:
            data = _read_file(Path(path))
        except UserError as error:
            problems += error.lines
    unread = bool(problems)
    for override in overrides:
        try:
            _apply(data, override)
        except UserError as error:
            problems += error.lines
    if unread:  # what would be missing or wrong is not known
        raise UserError(*problems)
    try:
        config = schema.model_validate(data)
    except pydantic.ValidationError as error:
        lines = [_line(*explained(schema, item), data) for item in error.errors(include_url=False)]
        raise UserError(*problems, *dict.fromkeys(lines)) from None
    if problems:
        raise UserError(*problems)
    return config


def to_yaml(config: Config) -> str:
    """The resolved config as YAML; :func:`load` gives an equal config back."""
    return write(config.model_dump(mode="json"))


def _read_file(path: Path) -> dict[str, Any]:
    try:
        data = read(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UserError(f"{path}: {error.strerror or error}") from None
    except UnicodeDecodeError:
        raise UserError(f"{path}: expected UTF-8 text") from None
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        raise UserError(f"{path}:{mark.line + 1 if mark else 1}: bad YAML: {error.problem}") from None
    except yaml.YAMLError as error:
        raise UserError(f"{path}: bad YAML: {str(error).splitlines()[0]}") from None
    if data is not None and not isinstance(data, dict):
        raise UserError(f"{path}: expected a mapping of keys to values, got {shown(data)}")
    return data or {}


def _apply(data: Any, override: str) -> None:
    """Writes one ``a.b=value`` into the tree ``data``."""
    key, equals, text = override.partition("=")
    parts = key.strip().replace("-", "_").split(".")
    if not equals or not all(parts):
        raise UserError(f'expected key=value, got "{override}"')
    node = data
    for depth, part in enumerate(parts):
        _check_index(node, parts[:depth], part)
        slot = int(part) if isinstance(node, list) else part
        if depth == len(parts) - 1:
            if part == "type" and isinstance(node, dict) and node.get("type") != text:
                kept = _typed(node)
                node.clear()
                node.update(kept)
            node[slot] = TypedText(text)
        else:
            node[slot] = node = _container(node[slot] if isinstance(node, list) else node.get(slot), parts[: depth + 1])


def _container(value: Any, path: list[str]) -> Any:
    """The mapping or list that ``value`` is or stands for."""
    if isinstance(value, TypedText):
        value = value.as_yaml()
    if value is None:
        return {}
    if isinstance(value, str):  # `mixer: retnet` is short for `mixer: {type: retnet}`
        return {"type": value}
    if not isinstance(value, dict | list):
        key = ".".join(path)
        raise UserError(f"{key}: expected a mapping to set a key in, got {shown(value)}")
    return value


def _check_index(node: Any, path: list[str], part: str) -> None:
    if isinstance(node, list) and not (part.isdecimal() and int(part) < len(node)):
        key = ".".join(path)
        raise UserError(f'{key}: expected an index below {len(node)}, got "{part}"')


def _typed(value: Any) -> Any:
    """What the command line has written in this part of the tree."""
    if isinstance(value, dict):
        kept = {key: _typed(item) for key, item in value.items()}
        return {key: item for key, item in kept.items() if item is not None}
    return value if isinstance(value, TypedText) else None


def _line(loc: Sequence[Any], message: str, data: Any) -> str:
    """``a.b.c: message``; drops the labels that pydantic puts into ``loc`` but the user did not write."""
    path: list[str] = []
    for depth, part in enumerate(loc):
        data = data.as_yaml() if isinstance(data, TypedText) else data
        inside = isinstance(data, Mapping) and (part in data or str(part) in data)
        inside = inside or (isinstance(data, list) and isinstance(part, int) and part < len(data))
        if inside or (depth == len(loc) - 1 and isinstance(data, Mapping | list)):
            path.append(str(part))
        if inside:
            data = data[part] if isinstance(data, list) or part in data else data[str(part)]
    return ".".join(path) + ": " + message if path else message
