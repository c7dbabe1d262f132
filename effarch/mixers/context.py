"""What a mixer is told beside its input: positions, documents, the form to compute in, and values that cross layers."""

import dataclasses
from collections.abc import Mapping
from functools import partial

import jax
import jax.numpy as jnp

from effarch.ops.segments import Segments, as_segments
from effarch.typing import Array, Int

FORMS = ("parallel", "chunkwise", "recurrent")


@partial(jax.tree_util.register_dataclass, data_fields=["length", "last_segment"], meta_fields=["version"])
@dataclasses.dataclass(frozen=True)
class Progress:
    """How far each row of a batch has come.

    Attributes:
      length: ``[B]`` int32 tokens of the current document already consumed.
      last_segment: ``[B]`` int32 its id; the same id goes on, another resets. 0: nothing consumed yet.
      version: of this layout.
    """

    length: Int[Array, " B"]
    last_segment: Int[Array, " B"]
    version: int = 1

    @classmethod
    def start(cls, batch_size: int) -> "Progress":
        """Rows of which nothing was consumed."""
        return cls(jnp.zeros((batch_size,), jnp.int32), jnp.zeros((batch_size,), jnp.int32))


@partial(jax.tree_util.register_dataclass, data_fields=["positions", "segments", "shared"], meta_fields=["form"])
@dataclasses.dataclass(frozen=True)
class Context:
    """Told to every mixer of a call.

    Attributes:
      positions: ``[B or 1, T]`` int32 position of each token in its document.
      segments: runs of the rows; None: no document ends, no padding, the carried document goes on.
      shared: values that cross layers, by name (RWKV-7: ``value_first``); replaced, never mutated.
      form: "parallel", "chunkwise" (training, prefill) or "recurrent" (decoding); all equal, never chosen by length.
    """

    positions: Int[Array, "B T"]
    segments: Segments | None
    shared: Mapping[str, Array] = dataclasses.field(default_factory=dict)
    form: str = "chunkwise"

    @property
    def reach(self) -> Int[Array, "B T"]:
        """For each token, one more than the last position of its document in this call; B and T may be 1."""
        if self.segments is None:
            return self.positions[:, -1:] + 1
        run = self.segments.run
        rows = jnp.arange(run.shape[0], dtype=jnp.int32)[:, None]
        most = jnp.zeros((run.shape[0], run.shape[1] + 2), jnp.int32).at[rows, run].max(self.segments.position + 1)
        return jnp.take_along_axis(most, run, axis=1)

    @classmethod
    def of(
        cls,
        batch: int,
        time: int,
        *,
        segment_ids: Int[Array, "B T"] | None = None,
        progress: Progress | None = None,
        form: str = "chunkwise",
    ) -> tuple["Context", Progress]:
        """The context of a call on ``[batch, time]`` tokens, and the progress after it.

        Args:
          batch, time: shape of the tokens.
          segment_ids: ``[B, T]`` documents, 0 is padding; None: all tokens go on with the current document.
          progress: before the call; None: nothing consumed.
          form: see the class.

        Raises:
          ValueError: ``form`` or the shape of ``segment_ids`` is not as expected.
        """
        if form not in FORMS:
            raise ValueError(f"form: expected one of {', '.join(FORMS)}, got {form!r}")
        before = Progress.start(batch) if progress is None else progress
        if segment_ids is None:
            positions = jnp.arange(time, dtype=jnp.int32)[None]
            if progress is not None:
                positions = positions + progress.length[:, None]
            last = jnp.where(before.last_segment == 0, 1, before.last_segment)
            return cls(positions, None, {}, form), Progress(before.length + time, last)
        if segment_ids.shape != (batch, time):
            raise ValueError(f"segment_ids: expected shape {[batch, time]}, got {list(segment_ids.shape)}")
        segments = as_segments(segment_ids, last_segment=before.last_segment, length=before.length)
        real = segments.real.any(axis=1)
        newest = segments.real & (segments.run == segments.last_run[:, None])  # tokens of the last document
        ids, least = segment_ids.astype(jnp.int32), jnp.iinfo(jnp.int32).min
        after = Progress(
            jnp.where(real, jnp.where(newest, segments.position + 1, 0).max(axis=1), before.length),
            jnp.where(real, jnp.where(newest, ids, least).max(axis=1), before.last_segment),
        )
        return cls(segments.position, segments, {}, form), after

    def share(self, **values: Array) -> "Context":
        """This context with more values for the layers above."""
        return dataclasses.replace(self, shared={**self.shared, **values})
