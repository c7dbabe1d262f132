"""YAML as configs read and write it: numbers like ``1e-3`` are numbers, ``yes`` and ``2026-01-01`` are text."""

import re
from pathlib import Path
from typing import Any

import yaml
from yaml.constructor import ConstructorError

from effarch.config.words import members


class _Loader(yaml.SafeLoader):
    """YAML 1.2's core scalars, and duplicate keys refused."""

    yaml_implicit_resolvers: dict[str, Any] = {}

    def construct_mapping(self, node: Any, deep: bool = False) -> dict[Any, Any]:
        keys = [key.value for key, _ in node.value if isinstance(key, yaml.ScalarNode) and key.value != "<<"]
        for position, (key, _) in enumerate(node.value):
            if isinstance(key, yaml.ScalarNode) and key.value in keys[:position]:
                raise ConstructorError(None, None, f'duplicate key "{key.value}"', key.start_mark)
        return super().construct_mapping(node, deep)


class _Dumper(yaml.SafeDumper):
    """Quotes what YAML 1.1 or 1.2 would read as something else than text; keeps lists of scalars on one line."""

    def represent_sequence(self, tag: str, sequence: Any, flow_style: bool | None = None) -> Any:
        flat = not any(isinstance(item, dict | list) for item in sequence)
        return super().represent_sequence(tag, sequence, flow_style=flat)

    def represent_text(self, text: str) -> Any:
        # Unicode's own line breaks are read back as spaces unless they are escaped, which double quotes do
        style = '"' if re.search("[\x85\u2028\u2029]", text) else None
        return self.represent_scalar("tag:yaml.org,2002:str", text, style=style)


_Dumper.add_representer(str, _Dumper.represent_text)


_FLOAT = r"""[-+]?(?:[0-9][0-9_]*\.[0-9_]*|\.[0-9][0-9_]*)(?:[eE][-+]?[0-9]+)?
    |[-+]?[0-9][0-9_]*[eE][-+]?[0-9]+ |[-+]?\.(?:inf|Inf|INF) |\.(?:nan|NaN|NAN)"""
_SCALARS = {
    "null": (r"~|null|Null|NULL|", "~nN\0"),
    "bool": (r"true|True|TRUE|false|False|FALSE", "tTfF"),
    "int": (r"[-+]?(?:0|[1-9][0-9_]*)|0x[0-9a-fA-F]+", "-+0123456789"),
    "float": (_FLOAT, "-+.0123456789"),
    "merge": (r"<<", "<"),
}
for _tag, (_pattern, _first) in _SCALARS.items():
    _regexp = re.compile(rf"^(?:{_pattern})$", re.VERBOSE)
    _starts = ["" if c == "\0" else c for c in _first]
    _Loader.add_implicit_resolver(f"tag:yaml.org,2002:{_tag}", _regexp, _starts)
    if _tag == "float":
        _Dumper.add_implicit_resolver(f"tag:yaml.org,2002:{_tag}", _regexp, _starts)


def read(text: str) -> Any:
    """The value that a YAML text holds. Raises ``yaml.YAMLError``."""
    return yaml.load(text, _Loader)  # a SafeLoader


def write(value: Any) -> str:
    """Block YAML in the order given; :func:`read` gives the same value back."""
    return yaml.dump(value, Dumper=_Dumper, sort_keys=False, width=110, allow_unicode=True, default_flow_style=False)


class TypedText(str):
    """A value from the command line. Fields of text (or a path) take it as it stands, others as YAML."""

    def read_for(self, annotation: Any) -> Any:
        """The value for a field of this type."""
        kinds = members(annotation)
        if not kinds <= {str, Path, type(None)} or (type(None) in kinds and self == "null"):
            return self.as_yaml()
        quoted = self.as_yaml() if self.strip()[:1] in ("'", '"') else None
        return quoted if isinstance(quoted, str) else str(self)

    def as_yaml(self) -> Any:
        """The YAML value; the text itself if it is no YAML."""
        try:
            value = read(self)
        except yaml.YAMLError:
            return str(self)
        # `def f(): # x` is text, not a mapping and a comment; and YAML would drop the spaces around text
        plain = self.strip()[:1] not in ("[", "{", "'", '"')
        return str(self) if plain and isinstance(value, str | dict | list) else value
