"""A config class as an aligned listing: key, type, default, description."""

from typing import Any, get_args, get_origin

from pydantic_core import PydanticUndefined

from effarch.config.alternatives import alternatives
from effarch.config.base import Config
from effarch.config.words import expected, is_union, shown, unwrap

Row = tuple[str, str, str, str]


def listing(schema: type[Config]) -> str:
    """Every key of the schema with its type, default, unit and meaning, nested ones dotted; one line each."""
    rows = [("key", "type", "default", "description"), *_rows(schema, None, "")]
    widths = [min(max(len(row[column]) for row in rows), 48) for column in range(3)]
    return "\n".join("  " + "  ".join([*map(_pad, row[:3], widths), row[3]]).rstrip() for row in rows)


def _pad(text: str, width: int) -> str:
    return f"{text:{width}}"


def _rows(schema: type[Config], default: Config | None, prefix: str) -> list[Row]:
    rows: list[Row] = []
    for name, field in schema.model_fields.items():
        fallback = field.get_default(call_default_factory=True, validated_data={})
        value = getattr(default, name) if default is not None else fallback
        annotation, metadata = unwrap(field.annotation, field.metadata)
        rows += _field(prefix + name, annotation, metadata, value, field.description or "")
    return rows


def _field(key: str, annotation: Any, metadata: tuple[Any, ...], value: Any, description: str) -> list[Row]:
    words, arguments = expected(annotation, metadata), get_args(annotation)
    if is_union(annotation):  # the member that has keys of its own, if one has
        for member in map(unwrap, arguments):
            if isinstance(member[0], type) and issubclass(member[0], Config):
                annotation, metadata = member[0], metadata + member[1]
    if choice := alternatives(metadata):
        value = choice.get(value)() if isinstance(value, str) else value  # a default may be a name
        kinds = words.replace(f"a {choice.kind}", f"one of {', '.join(choice.names())}")
        if not isinstance(value, Config):
            return [(f"{key}.type", kinds, _shown(value), description)]
        note = f"{description} (keys below: those of {value.type_name})".strip()
        return [(f"{key}.type", kinds, value.type_name, note), *_rows(type(value), value, f"{key}.")]
    if isinstance(annotation, type) and issubclass(annotation, Config):
        given = isinstance(value, Config)
        own = [(key, words, "" if given else _shown(value), description)] if description or not given else []
        return own + _rows(annotation, value if given else None, f"{key}.")
    if get_origin(annotation) is tuple and len(arguments) == 2 and arguments[1] is Ellipsis:
        entry, marks = unwrap(arguments[0])
        if isinstance(entry, type) and issubclass(entry, Config):
            several = isinstance(value, tuple) and value
            default = f"{len(value)} {'entry' if len(value) == 1 else 'entries'}" if several else _shown(value)
            return [(key, words, default, description), *_field(f"{key}.N", entry, marks, PydanticUndefined, "")]
    return [(key, words, _shown(value), description)]


def _shown(value: Any) -> str:
    if value is PydanticUndefined:
        return "required"
    return value if isinstance(value, str) and value else shown(value)
