"""The platform that a program is traced for, where the best form of an op depends on it."""

from collections.abc import Generator
from contextlib import contextmanager
from contextvars import ContextVar

import jax

_target: ContextVar[str | None] = ContextVar("platform", default=None)


def platform() -> str:
    """Where programs run by default ("cpu", "gpu", "tpu"), or what :func:`tracing_for` says."""
    return _target.get() or jax.default_backend()


@contextmanager
def tracing_for(name: str) -> Generator[None]:
    """Programs traced inside are meant for another platform: for compiling ahead of time for a machine elsewhere.

    Read while tracing: enter it inside the jitted function.
    """
    token = _target.set(name)
    try:
        yield
    finally:
        _target.reset(token)
