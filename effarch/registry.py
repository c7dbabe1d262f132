"""Names of config classes, by kind. Whoever iterates over a kind (tests, benchmark, distillation, list) starts here."""

import dataclasses
import importlib
import pkgutil
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

import pydantic
from pydantic_core import CoreSchema, InitErrorDetails, PydanticCustomError, core_schema

from effarch.config import Config, UserError, did_you_mean
from effarch.config.base import problem

C = TypeVar("C", bound=type[Config])

_classes: dict[str, dict[str, type[Config]]] = {}


def register(name: str, *, kind: str) -> Callable[[C], C]:
    """Decorator: makes a config class known under ``name`` and writes the name to its ``type_name``.

    Raises:
      ValueError: the name is taken, the class has another name already, or it has a field called ``type``.
    """

    def decorate(cls: C) -> C:
        known = _classes.setdefault(kind, {})
        if name in known:
            raise ValueError(f'{kind} "{name}": expected a new name, got that of {_where(known[name])}')
        if "type_name" in vars(cls):
            raise ValueError(f'{_where(cls)}: expected a class without a name, got one registered as "{cls.type_name}"')
        if "type" in cls.model_fields:
            raise ValueError(f'{_where(cls)}: expected no field "type", it holds the name')
        cls.type_name = name
        known[name] = cls
        return cls

    return decorate


def names(kind: str) -> tuple[str, ...]:
    """The registered names, sorted."""
    return tuple(sorted(_classes.get(kind, {})))


def configs(kind: str) -> dict[str, type[Config]]:
    """The registered classes by name, sorted."""
    return {name: _classes[kind][name] for name in names(kind)}


def get(kind: str, name: str) -> type[Config]:
    """The class registered as ``name``. Raises ``UserError`` with the known names."""
    if name not in names(kind):
        raise UserError(_unknown(kind, name))
    return _classes[kind][name]


def discover(package: str) -> None:
    """Imports every module of a package, so that they register; its ``__init__`` calls it with ``__name__``."""
    for module in pkgutil.iter_modules(importlib.import_module(package).__path__, package + "."):
        importlib.import_module(module.name)


@dataclasses.dataclass(frozen=True)
class Choice:
    """The type of a field that holds a registered config: ``mixer: Annotated[Config, Choice("mixer")]``.

    Takes a config, a mapping with ``type`` and some of its keys, or a name alone (all defaults). The registry is asked
    when a value is checked, so that what registers later can be chosen too. A default may be a name as well.
    """

    kind: str

    def names(self) -> tuple[str, ...]:
        """The known values of ``type``."""
        return names(self.kind)

    def get(self, name: str) -> type[Config]:
        """The class called ``name``."""
        return get(self.kind, name)

    def __get_pydantic_core_schema__(self, source: Any, handler: pydantic.GetCoreSchemaHandler) -> CoreSchema:
        """How pydantic checks and writes such a field."""
        dump = core_schema.plain_serializer_function_ser_schema(
            lambda config, info: config.model_dump(mode=info.mode), info_arg=True
        )
        return core_schema.no_info_plain_validator_function(self._check, serialization=dump)

    def _check(self, value: Any) -> Config:
        if isinstance(value, Config) and type(value) in configs(self.kind).values():
            return value
        if isinstance(value, str):
            value = {"type": value}
        if not isinstance(value, Mapping):
            raise PydanticCustomError("choice", "neither config nor name")  # the message is made by the field
        if "type" not in value:
            raise self._error("missing; expected " + self._options(), value)
        name = str(value["type"])
        if name not in self.names():
            raise self._error(_unknown(self.kind, name), value)
        return self.get(name).model_validate({key: item for key, item in value.items() if key != "type"})

    def _options(self) -> str:
        return f"one of {', '.join(self.names())}"

    def _error(self, message: str, value: Any) -> pydantic.ValidationError:
        details = InitErrorDetails(type=problem(message), loc=("type",), input=value)
        return pydantic.ValidationError.from_exception_data(self.kind, [details])


def _unknown(kind: str, name: str) -> str:
    known = names(kind)
    return f'unknown {kind} "{name}"{did_you_mean(name, known)} (known: {", ".join(known) or "none"})'


def _where(cls: type) -> str:
    return f"{cls.__module__}.{cls.__qualname__}"
