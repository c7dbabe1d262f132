"""The mark of a field that holds one of several config classes, chosen by its ``type``."""

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

if TYPE_CHECKING:
    from effarch.config.base import Config


@runtime_checkable
class Alternatives(Protocol):
    """Stands inside ``Annotated`` and does the validation; errors and ``--help`` ask it for the names."""

    kind: str

    def names(self) -> tuple[str, ...]:
        """The known values of ``type``."""
        ...

    def get(self, name: str) -> "type[Config]":
        """The config class called ``name``."""
        ...


def alternatives(metadata: Iterable[Any]) -> Alternatives | None:
    """The mark among a field's metadata, if there is one."""
    return next((item for item in metadata if isinstance(item, Alternatives)), None)
