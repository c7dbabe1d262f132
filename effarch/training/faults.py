"""What may go wrong from outside: signals, and losses that are not finite."""

import os
import signal
from types import FrameType
from typing import Any

from effarch.config import UserError

#: Exit codes, after the last checkpoint: 128 + the signal's number, as shells have it.
EXIT_SIGTERM = 143
EXIT_SIGINT = 130


class StopSignal:
    """Notes SIGTERM and SIGINT instead of dying of them, so that the loop can save first.

    It is only a flag, so it also works while something compiles or evaluates: the loop sees it at the next step. A
    second signal kills at once. Exit with ``exit_code`` after saving: 143 for SIGTERM, 130 for SIGINT. Only in the main
    thread.

        with StopSignal() as stop:
            for ...:
                ...
                if stop.requested: save; break
        sys.exit(stop.exit_code)
    """

    def __init__(self) -> None:
        self._signal: int | None = None
        self._before: dict[int, Any] = {}

    @property
    def requested(self) -> bool:
        """Whether a signal has come."""
        return self._signal is not None

    @property
    def exit_code(self) -> int:
        """128 + the signal's number; 0 when none came."""
        return 0 if self._signal is None else 128 + self._signal

    def _note(self, number: int, _: FrameType | None) -> None:
        if self._signal is not None:
            signal.signal(number, signal.SIG_DFL)
            os.kill(os.getpid(), number)
        self._signal = number

    def __enter__(self) -> "StopSignal":
        self._before = {n: signal.signal(n, self._note) for n in (signal.SIGTERM, signal.SIGINT)}
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)


class NonFinite:
    """Ends a run in which the NaN guard steps in again and again.

    Args:
      limit: consecutive skipped steps that are too many.
    """

    def __init__(self, limit: int = 10) -> None:
        self._limit = limit
        self._run = 0

    def update(self, step: int, skipped: float) -> None:
        """Takes the metric ``skipped`` of a step.

        Raises:
          UserError: it is the ``limit``-th in a row.
        """
        self._run = self._run + 1 if skipped else 0
        if self._run >= self._limit:
            raise UserError(
                f"step {step}: loss or gradient not finite in {self._run} steps in a row; "
                "the parameters are those before the first of them (try a lower learning_rate)"
            )
