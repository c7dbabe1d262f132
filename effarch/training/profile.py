"""A trace of a few steps, for TensorBoard or Perfetto: where the time of a step goes."""

from pathlib import Path

import jax
from pydantic import Field

from effarch.config import Config


class ProfileConfig(Config):
    """Which steps are traced into ``<run>/profile``."""

    start: int = Field(10, ge=0, description="steps taken before the trace begins; the first ones compile")
    steps: int = Field(0, ge=0, description="steps to trace; 0: none")


class Profiler:
    """Traces the steps that a config names.

    Args:
      folder: of the run; traces go to ``<folder>/profile``.
      config: which steps.
    """

    def __init__(self, folder: str | Path, config: ProfileConfig) -> None:
        self._folder = Path(folder) / "profile"
        self._steps = range(config.start, config.start + config.steps)
        self._tracing = False

    def before(self, step: int) -> None:
        """``step`` steps have been taken and the next one is about to begin."""
        if step in self._steps and not self._tracing:
            jax.profiler.start_trace(self._folder)
            self._tracing = True

    def after(self, step: int, result: object) -> None:
        """``step`` steps have been taken, the last one gave ``result``: the trace ends when that is computed."""
        if self._tracing and step >= self._steps.stop:
            jax.block_until_ready(result)
            self.close()

    def close(self) -> None:
        """Writes what was traced, if anything."""
        if self._tracing:
            self._tracing = False
            jax.profiler.stop_trace()

    def __enter__(self) -> "Profiler":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
