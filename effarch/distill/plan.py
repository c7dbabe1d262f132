"""The stages of one run in their places: names, steps, rows."""

import collections
import dataclasses
import math

from effarch.config import UserError
from effarch.distill.stages import Stage


@dataclasses.dataclass(frozen=True)
class Planned:
    """A stage in its place.

    Attributes:
      name: its type; one whose type occurred before has a number too: logits, logits 2.
      stage: with as many ``steps`` as it has in this run.
      batch_size, seq_len: of its rows, those of the run where the stage has none of its own.
      first: steps of the run before it.
      rows_before: rows of ``seq_len`` tokens that the stages before have read; the stage goes on behind them.
    """

    name: str
    stage: Stage
    batch_size: int
    seq_len: int
    first: int
    rows_before: int

    @property
    def last(self) -> int:
        """Steps of the run when it is done."""
        return self.first + self.stage.steps

    @property
    def tokens(self) -> int:
        """What it trains on, padding included."""
        return self.stage.steps * self.batch_size * self.seq_len

    @property
    def batches_before(self) -> int:
        """Batches of its size that hold ``rows_before``."""
        return -(-self.rows_before // self.batch_size)


def plan(stages: tuple[Stage, ...], *, batch_size: int, seq_len: int, tokens: int | None) -> tuple[Planned, ...]:
    """The stages of a run.

    Args:
      stages: as configured. batch_size, seq_len: of the run.
      tokens: to train on, all stages together: a stage has ``tokens * share / (batch_size * seq_len)`` updates, at
        least one; those without a share have equal parts of what the others leave. None: as their ``steps`` say.

    Raises:
      UserError: shares without tokens, or that are not 1 together.
    """
    shares = _shares(stages, tokens)
    seen: collections.Counter[str] = collections.Counter()
    rows: collections.Counter[int] = collections.Counter()
    first, planned = 0, []
    for stage, share in zip(stages, shares, strict=True):
        size, length = stage.batch_size or batch_size, stage.seq_len or seq_len
        if tokens is not None:
            stage = stage.replace(steps=max(1, round(tokens * share / (size * length))))
        seen[stage.type_name] += 1
        number = seen[stage.type_name]
        name = stage.type_name if number == 1 else f"{stage.type_name} {number}"
        planned.append(Planned(name, stage, size, length, first, rows[length]))
        first += stage.steps
        rows[length] += stage.steps * size
    return tuple(planned)


def _shares(stages: tuple[Stage, ...], tokens: int | None) -> list[float]:
    given = [stage.share for stage in stages if stage.share is not None]
    if tokens is None and given:
        raise UserError("stages: a share is one of the run's tokens; expected a number of tokens, got null")
    total, without = math.fsum(given), len(stages) - len(given)
    if tokens is not None and (total >= 1 - 1e-6 if without else abs(total - 1) > 1e-6):
        wanted = "less than 1, for there are stages without one" if without else "1"
        raise UserError(f"stages: expected shares that are together {wanted}, got {total:g}")
    return [(1 - total) / without if stage.share is None else stage.share for stage in stages]
