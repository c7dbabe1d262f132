"""Windows with gaps, their width in tokens different from head to head: Longformer's (2004.05150).

    with dilation d, the query at position p of its run sees the positions p + ahead d, p + (ahead - 1) d, ...,
    `window` of them

Heads with the same dilation are one part of `blockwise` attention, over the line itself (d = 1) or over the line folded
(`strided_attention`); so time is O(T * window) whatever the dilations are, memory O(T).
"""

import dataclasses
import itertools

import jax.numpy as jnp
import numpy as np

from effarch.ops.attention.line import Line
from effarch.ops.attention.strided import strided_attention
from effarch.typing import Array, Bool, Float, Int


@dataclasses.dataclass(frozen=True)
class Dilated:
    """Which windows the heads have.

    Attributes:
      window: positions that a query sees, >= 1.
      dilations: distance between two of them, >= 1; the key heads, in as many equal groups, have one each.
      ahead: how many of the window's positions come after the query's own, 0 <= ahead < window.
    """

    window: int
    dilations: tuple[int, ...] = (1,)
    ahead: int = 0

    @property
    def longest(self) -> int:
        """Positions from the query's own back to the first that any head sees, both counted."""
        return (self.window - self.ahead - 1) * max(self.dilations) + 1

    def pairs(self, time: int, skip: int = 0) -> float:
        """Pairs of a query and a key in a document of ``time`` tokens, per head, keys before ``skip`` left out."""
        steps = np.abs(np.arange(-self.ahead, self.window - self.ahead))[:, None] * np.asarray(self.dilations)[None]
        return float(np.maximum(time - skip - steps, 0).sum() / len(self.dilations))

    def sees(self, distance: Int[Array, "B T S"], heads: int) -> Bool[Array, "B Hk 1 T S"]:
        """Who sees whom by position of the query minus that of the key, as `reference.mix` takes it."""
        d = jnp.asarray(np.repeat(self.dilations, self._each(heads)), jnp.int32)[None, :, None, None]
        step, rest = jnp.divmod(distance[:, None], d)
        return ((rest == 0) & (step >= -self.ahead) & (step < self.window - self.ahead))[:, :, None]

    def seen(self, line: Line) -> Bool[Array, "B Hk 1 T L"]:
        """Who sees whom in memory."""
        same = line.seen(lambda i, j: j >= 0)[:, None, None]
        return same & self.sees(line.position_q[:, :, None] - line.position[:, None], line.k.shape[2])

    def attend(
        self, q: Float[Array, "B T Hq D"], line: Line, *, scale: float
    ) -> tuple[Float[Array, "B T Hq V"], Float[Array, "B T Hq"]]:
        """Attention of the queries of a line, and the log of its sum.

        Args:
          scale: multiplies the logits.

        Raises:
          ValueError: the number of dilations does not divide the key heads.
        """
        each, group = self._each(line.k.shape[2]), q.shape[2] // line.k.shape[2]
        parts, start = [], 0
        for dilation, same in itertools.groupby(self.dilations):
            end = start + each * len(list(same))
            own = dataclasses.replace(line, k=line.k[:, :, start:end], v=line.v[:, :, start:end])
            queries = q[:, :, start * group : end * group]
            if dilation == 1:
                parts.append(own.window(queries, self.window, ahead=self.ahead, scale=scale))
            else:
                reach = {"behind": -self.ahead * dilation, "span": self.window * dilation}
                parts.append(strided_attention(queries, own, dilation, **reach, scale=scale))
            start = end
        o, logsumexp = zip(*parts, strict=True)
        return jnp.concatenate(o, axis=2), jnp.concatenate(logsumexp, axis=2)

    def _each(self, heads: int) -> int:
        """Key heads of a dilation."""
        if heads % len(self.dilations):
            raise ValueError(f"dilations: expected a number that divides {heads} key heads, got {len(self.dilations)}")
        return heads // len(self.dilations)
