"""What a run reports: ``metrics.jsonl``, a progress bar, and metrics fetched one step late."""

import contextlib
import json
import math
import os
import sys
import time
from collections.abc import Callable, Generator, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, TextIO

import jax
from pydantic import Field

from effarch.config import Config, UserError
from effarch.parallel.processes import is_first
from effarch.training.run import write_atomic


class LogConfig(Config):
    """What is logged, and how often."""

    every: int = Field(10, gt=0, description="steps between lines of metrics.jsonl")
    tensorboard: bool = Field(False, description="also write tb/ (needs the extra `tensorboard`)")


class MetricsLog:
    """Appends one JSON object per line to ``<folder>/metrics.jsonl``; of several processes, the first alone.

    Args:
      folder: of the run.
      step: the step the run continues from. Lines of later steps, which will be taken again, are dropped, as is a line
        that a kill tore; 0 starts anew.
      tensorboard: also writes scalars to ``<folder>/tb``.

    Raises:
      UserError: tensorboard is asked for and not installed.
    """

    def __init__(self, folder: str | Path, step: int = 0, tensorboard: bool = False) -> None:
        self._file: TextIO | None = None
        self._writer = _tensorboard(Path(folder) / "tb", step) if tensorboard and is_first() else None
        if not is_first():
            return
        path = Path(folder) / "metrics.jsonl"
        if path.exists():
            lines = path.read_text(encoding="utf-8").splitlines()
            kept = [line for line in lines if _step_of(line) <= step]
            if kept != lines:
                write_atomic(path, "".join(line + "\n" for line in kept))
        self._file = open(path, "a", buffering=1, encoding="utf-8")  # noqa: SIM115 - closed by close()

    def write(self, step: int, values: Mapping[str, float | int | str]) -> None:
        """One line: ``step``, then the values; numbers that are not finite become null, which JSON can say."""
        if self._file is None:
            return
        clean = {name: x if isinstance(x, str) or math.isfinite(x) else None for name, x in values.items()}
        self._file.write(json.dumps({"step": step, **clean}) + "\n")
        if self._writer is not None:
            for name, x in values.items():
                if not isinstance(x, str):
                    self._writer.add_scalar(name, x, step)

    def close(self) -> None:
        """Flushes and closes."""
        if self._file is not None:
            self._file.close()
        if self._writer is not None:
            self._writer.close()

    def __enter__(self) -> "MetricsLog":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def _tensorboard(folder: Path, step: int) -> Any:
    try:
        from tensorboardX import SummaryWriter
    except ImportError as error:
        raise UserError(
            "log.tensorboard: expected the extra `tensorboard` to be installed, got no tensorboardX"
        ) from error
    return SummaryWriter(str(folder), purge_step=step + 1)


def _step_of(line: str) -> float:
    try:
        return json.loads(line)["step"]
    except (ValueError, KeyError, TypeError):
        return math.inf


class Deferred:
    """Holds the metrics of a step until the next one is on its way, so that reading them does not stop the device."""

    def __init__(self) -> None:
        self._held: tuple[int, Any] | None = None

    def push(self, step: int, metrics: Any) -> tuple[int, dict[str, float]] | None:
        """Takes this step's metrics (arrays); returns the step and the numbers of the one before, if any."""
        before = self.flush()
        self._held = (step, metrics)
        return before

    def flush(self) -> tuple[int, dict[str, float]] | None:
        """Returns what is held, as numbers."""
        held, self._held = self._held, None
        if held is None:
            return None
        step, metrics = held
        return step, {name: float(x) for name, x in jax.device_get(metrics).items()}


class Throughput:
    """Tokens per second between calls.

    Args:
      tokens: per step.
    """

    def __init__(self, tokens: int) -> None:
        self._tokens = tokens
        self._last: tuple[int, float] | None = None

    def __call__(self, step: int) -> float:
        """Tokens/s since the call before; 0 in the first, which cannot know."""
        now, last = time.perf_counter(), self._last
        self._last = (step, now)
        return 0.0 if last is None else (step - last[0]) * self._tokens / max(now - last[1], 1e-9)


@contextlib.contextmanager
def progress(total: int, description: str, start: int = 0) -> Generator[Callable[..., None]]:
    """A progress bar on a terminal, elsewhere a line every tenth of the way, on stderr; in the first process alone.

    Args:
      total: steps in all.
      description: what is being done.
      start: steps done before.

    Yields:
      ``advance(step, note="")``: ``step`` steps are done.
    """
    if not is_first():
        yield lambda step, note="": None
        return
    if not sys.stderr.isatty() or os.environ.get("TERM") == "dumb":
        yield _plain(total, description, start)
        return
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, TextColumn("{task.fields[note]}"), console=Console(stderr=True)) as bars:
        task = bars.add_task(description, total=total, completed=start, note="")

        def advance(step: int, note: str = "") -> None:
            bars.update(task, completed=step, note=note)

        yield advance


def _plain(total: int, description: str, start: int) -> Callable[..., None]:
    begun, tenth = time.perf_counter(), 10 * start // max(total, 1)

    def advance(step: int, note: str = "") -> None:
        nonlocal tenth
        if 10 * step // max(total, 1) > tenth:
            tenth = 10 * step // max(total, 1)
            seconds = time.perf_counter() - begun
            print(f"{description}: {step}/{total} ({seconds:.0f} s) {note}".rstrip(), file=sys.stderr, flush=True)

    return advance
