"""Models that are not made, to see whether they could be."""

from collections.abc import Callable
from typing import TypeVar

import jax
import pydantic

from effarch.config import UserError

T = TypeVar("T")


def abstractly(make: Callable[[], T]) -> T:
    """What ``make`` would make, nothing computed; sizes that do not fit are the user's mistake.

    Raises:
      UserError: ``make`` raised a ``ValueError``.
    """
    try:
        return jax.eval_shape(make)
    except pydantic.ValidationError as error:
        lines = [item["msg"].removeprefix("Value error, ") for item in error.errors(include_url=False)]
        raise UserError(*lines) from error
    except ValueError as error:
        raise UserError(str(error)) from error
