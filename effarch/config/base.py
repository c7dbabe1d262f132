"""The base of every config: frozen, hashable, unknown keys forbidden, errors that say what was expected."""

import difflib
import re
from collections.abc import Iterable, Mapping
from typing import Any, ClassVar, Self

import pydantic
from pydantic_core import InitErrorDetails, PydanticCustomError

from effarch.config.words import expected, members, shown
from effarch.config.yaml import TypedText

_EXPLAINED = "explained"  # pydantic's name for an error whose message is ours


def problem(message: str) -> PydanticCustomError:
    """An error for validators to raise whose message is final."""
    return PydanticCustomError(_EXPLAINED, "{message}", {"message": message})


class UserError(ValueError):
    """A user's mistake. The command line prints ``lines`` and exits with 2, without a traceback.

    Args:
      *lines: one clear line per problem: where, what was expected, what was given.
    """

    def __init__(self, *lines: str):
        super().__init__("\n".join(lines))
        self.lines: tuple[str, ...] = lines


def did_you_mean(name: str, options: Iterable[str]) -> str:
    """``'; did you mean "gla"?'`` if ``name`` is close to one of ``options``, else the empty string."""
    close = difflib.get_close_matches(str(name), list(options), n=1)
    return f'; did you mean "{close[0]}"?' if close else ""


class Config(pydantic.BaseModel):
    """Base of all configs. Sequences are tuples (lists are converted), so that every config can be hashed.

    What is not said keeps its default, to any depth: a mapping given for a field whose default is a config changes
    only the keys it has, unless it changes the ``type``; then it starts from the defaults of the new type.

    A registered config is written with ``type`` as its first key, and accepts that key back.
    """

    # Deferred: importing all mixers builds seventy schemas otherwise, a tenth of the time that jax and flax take.
    model_config = pydantic.ConfigDict(
        frozen=True, extra="forbid", validate_default=True, ser_json_inf_nan="constants", defer_build=True
    )

    type_name: ClassVar[str] = ""  # set by `registry.register`

    def replace(self, **changes: Any) -> Self:
        """A copy with some fields changed, checked like a new one."""
        return type(self)(**{**_fields(self), **changes})

    def differences(self, other: "Config") -> str:
        """The keys whose values are not those of ``other``, as ``key=value``, with spaces between."""
        pairs = {name: getattr(self, name) for name in type(self).model_fields}
        return " ".join(f"{n}={v}".lower() for n, v in pairs.items() if v != getattr(other, n, None))

    @pydantic.field_validator("*", mode="before")
    @classmethod
    def _over_default(cls, value: Any, info: pydantic.ValidationInfo) -> Any:
        field = cls.model_fields[str(info.field_name)]
        if isinstance(value, TypedText):
            value = value.read_for(field.annotation)
        # pydantic would take true for 1
        if isinstance(value, bool) and {int, float} & (kinds := members(field.annotation)) and bool not in kinds:
            raise problem(f"expected {expected(field.annotation, field.metadata)}, got {shown(value)}")
        return _overlay(field.get_default(call_default_factory=True, validated_data={}), value)

    @pydantic.model_validator(mode="wrap")
    @classmethod
    def _explain(cls, data: Any, handler: pydantic.ModelWrapValidatorHandler[Self]) -> Self:
        if isinstance(data, Mapping) and cls.type_name and data.get("type") == cls.type_name:
            data = {key: value for key, value in data.items() if key != "type"}
        try:
            return handler(data)
        except pydantic.ValidationError as error:
            details = [_details(*explained(cls, item), item["input"]) for item in error.errors(include_url=False)]
            raise pydantic.ValidationError.from_exception_data(cls.__name__, details) from None

    @pydantic.model_serializer(mode="wrap")
    def _with_type(self, handler: pydantic.SerializerFunctionWrapHandler) -> dict[str, Any]:
        return ({"type": self.type_name} if self.type_name else {}) | handler(self)


def _fields(config: Config) -> dict[str, Any]:
    return {name: getattr(config, name) for name in type(config).model_fields}


def _overlay(default: Any, value: Any) -> Any:
    """``value`` with what it does not say taken from ``default``."""
    if not isinstance(value, Mapping):
        return value
    if isinstance(default, str) and "type" not in value:  # the default names a registered config
        return {"type": default, **value}
    if isinstance(default, Config) and value.get("type", default.type_name) == default.type_name:
        fields = _fields(default)
        typed = {"type": default.type_name} if default.type_name else {}
        return typed | fields | {key: _overlay(fields.get(key), item) for key, item in value.items()}
    if isinstance(default, tuple) and value and all(str(key).isdecimal() for key in value):  # stages.0.steps=10
        if beyond := [key for key in value if int(key) >= len(default)]:
            raise problem(f'expected an index below {len(default)}, got "{beyond[0]}"')
        return [_overlay(item, value.get(str(i), item)) for i, item in enumerate(default)]
    return value


def explained(cls: type[Config], error: Any) -> tuple[tuple[Any, ...], str]:
    """Where and what: one of the errors that pydantic found in a ``cls``, in our words."""
    loc, kind = error["loc"], error["type"]
    field = cls.model_fields.get(str(loc[0])) if loc else None
    if kind == _EXPLAINED:  # by a config below this one
        return loc, error["msg"]
    if kind in ("value_error", "assertion_error"):
        message = str(error["ctx"]["error"])
        named = re.match(r"([a-z_][\w.]*): ", message)  # our ValueErrors name the field
        if named is None:
            return loc, message
        return (loc if loc[-1:] == (named[1],) else (*loc, named[1])), message[named.end() :]
    if kind in ("extra_forbidden", "invalid_key"):
        return loc, "unknown key" + did_you_mean(loc[-1], cls.model_fields)
    if field is None:
        return loc, f"expected a mapping, got {shown(error['input'])}"
    indices = tuple(part for part in loc[1:] if isinstance(part, int))  # the rest are labels of a union's members
    loc, wanted = (loc[0], *indices), expected(field.annotation, field.metadata, indices)
    return (
        loc,
        f"missing; expected {wanted}" if kind == "missing" else f"expected {wanted}, got {shown(error['input'])}",
    )


def _details(loc: tuple[Any, ...], message: str, value: Any) -> InitErrorDetails:
    return InitErrorDetails(type=problem(message), loc=loc, input=value)
