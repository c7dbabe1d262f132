"""Documents packed in one row: runs, positions inside them, and padding that is the identity.

``segment_ids`` is ``[B, T]``; 0 is padding. A *run* is a maximal stretch of one id, zeros ignored. Ops work on run
indices: 0 at padding, else 1, 2, ... in order of time; a carried state belongs to run 1. A row whose first document is
not the one the state came from starts at run 2, so the state is never read.
"""

import dataclasses
from functools import partial
from typing import NamedTuple, overload

import jax
import jax.numpy as jnp

from effarch import axes
from effarch.ops.context import Start, split_over_devices
from effarch.typing import Array, Bool, Int


@partial(
    jax.tree_util.register_dataclass, data_fields=["run", "carried_run", "position", "order", "inverse"], meta_fields=[]
)
@dataclasses.dataclass(frozen=True)
class Segments:
    """What ops need to know about the documents of a row, computed once per call of a model.

    Attributes:
      run: ``[B, T]`` int32 run index, 0 at padding, non-decreasing otherwise; run 1 continues the carried state.
      carried_run: ``[B, T]`` int32 run of the state that token t finds: that of the last real token before it, 1 at the
        start.
      position: ``[B, T]`` int32 position inside the run, counting real tokens only; run 1 goes on from ``length``.
      order: ``[B, T]`` int32, the times of a row with its real tokens first (stable), padding last.
      inverse: ``[B, T]`` int32, the inverse permutation of ``order``.
    """

    run: Int[Array, "B T"]
    carried_run: Int[Array, "B T"]
    position: Int[Array, "B T"]
    order: Int[Array, "B T"]
    inverse: Int[Array, "B T"]

    @property
    def real(self) -> Bool[Array, "B T"]:
        """True where the token is not padding."""
        return self.run > 0

    @property
    def last_run(self) -> Int[Array, " B"]:
        """Run that the state belongs to after the row; 1 if the row is all padding."""
        return jnp.maximum(self.run.max(axis=1), 1)


@overload
def as_segments(segment_ids: None, *, last_segment: Array | None = None, length: Array | None = None) -> None: ...
@overload
def as_segments(
    segment_ids: Array | Segments, *, last_segment: Array | None = None, length: Array | None = None
) -> Segments: ...
@overload
def as_segments(
    segment_ids: Array | Segments | None, *, last_segment: Array | None = None, length: Array | None = None
) -> Segments | None: ...
def as_segments(
    segment_ids: "Int[Array, 'B T'] | Segments | None",
    *,
    last_segment: Int[Array, " B"] | None = None,
    length: Int[Array, " B"] | None = None,
) -> Segments | None:
    """Runs and positions of packed rows; ``None`` and ``Segments`` pass through.

    Args:
      segment_ids: ``[B, T]`` integers, 0 is padding.
      last_segment: ``[B]`` id of the document that the carried state belongs to (default: 1, so that run indices
        are their own runs).
      length: ``[B]`` tokens of that document already consumed (default 0).

    Raises:
      ValueError: ``segment_ids`` is not a ``[B, T]`` integer array.
    """
    if segment_ids is None or isinstance(segment_ids, Segments):
        return segment_ids
    if segment_ids.ndim != 2 or not jnp.issubdtype(segment_ids.dtype, jnp.integer):
        raise ValueError(
            f"segment_ids: expected an integer array [B, T], got {segment_ids.dtype}{list(segment_ids.shape)}"
        )
    ids = segment_ids.astype(jnp.int32)
    batch, time = ids.shape
    last = jnp.ones((batch,), jnp.int32) if last_segment is None else last_segment.astype(jnp.int32)
    length = jnp.zeros((batch,), jnp.int32) if length is None else length.astype(jnp.int32)
    before, split = _Seen(last, length, jnp.ones_like(last)), axes.context_parallel(time)
    if split is None:
        found, _ = _number(ids, before)
    else:
        mesh, axis = split
        found, _ = split_over_devices(ids, before, run=_number, span=_span, apply=_go_on, mesh=mesh, axis=axis)
    return Segments(*found, *partition(ids != 0))


class _Seen(NamedTuple):
    """What a row has seen: the id of its last document, its real tokens, and how many runs there were."""

    last: Int[Array, " B"]
    length: Int[Array, " B"]
    runs: Int[Array, " B"]


class _Span(NamedTuple):
    """What tokens add to that: the id of their first real token (0: none), and what they are seen as by themselves."""

    first: Int[Array, " B"]
    own: _Seen


def _number(ids: Int[Array, "B T"], before: _Seen) -> tuple[tuple[Array, Array, Array], _Seen]:
    """Run, carried run and position of each token, and what was seen after the last."""
    real = ids != 0
    clock = jnp.broadcast_to(jnp.arange(ids.shape[1], dtype=jnp.int32), ids.shape)

    # The id of the last real token before t (or the carried one): look it up at its time.
    seen = jax.lax.cummax(jnp.where(real, clock, -1), axis=1)
    seen_before = jnp.pad(seen[:, :-1], ((0, 0), (1, 0)), constant_values=-1)
    previous = jnp.take_along_axis(ids, jnp.maximum(seen_before, 0), axis=1)
    starts = real & (ids != jnp.where(seen_before >= 0, previous, before.last[:, None]))
    runs = before.runs[:, None] + jnp.cumsum(starts.astype(jnp.int32), axis=1, dtype=jnp.int32)

    count = jnp.cumsum(real.astype(jnp.int32), axis=1, dtype=jnp.int32)  # real tokens up to and with t
    base = jax.lax.cummax(jnp.where(starts, count - 1, -1), axis=1)  # real tokens before this run began
    length = jnp.where(base < 0, count + before.length[:, None], count - base)  # of this run, up to and with t
    newest = jnp.take_along_axis(ids, jnp.maximum(seen[:, -1:], 0), axis=1)[:, 0]
    after = _Seen(jnp.where(seen[:, -1] >= 0, newest, before.last), length[:, -1], runs[:, -1])
    carried = runs - starts.astype(jnp.int32)
    return (jnp.where(real, runs, 0), carried, jnp.where(real, length - 1, 0)), after


def _span(ids: Int[Array, "B T"], start: Start) -> _Span:
    first = jnp.take_along_axis(ids, (ids != 0).argmax(axis=1)[:, None], axis=1)[:, 0]
    nothing = jnp.zeros_like(first)
    return _Span(first, _number(ids, _Seen(first, nothing, nothing))[1])


def _go_on(span: _Span, before: _Seen) -> _Seen:
    """What was seen after these tokens, too."""
    none, same = span.first == 0, span.first == before.last
    length = span.own.length + jnp.where(same & (span.own.runs == 0), before.length, 0)
    after = _Seen(span.own.last, length, before.runs + span.own.runs + jnp.where(same, 0, 1))
    return jax.tree.map(partial(jnp.where, none), before, after)


def partition(real: Bool[Array, "B T"]) -> tuple[Int[Array, "B T"], Int[Array, "B T"]]:
    """``(order, inverse)`` of `Segments`: a stable partition without a sort.

    Real tokens keep their order in front, padding fills the rest.
    """
    batch, time = real.shape
    clock = jnp.broadcast_to(jnp.arange(time, dtype=jnp.int32), real.shape)
    count = jnp.cumsum(real.astype(jnp.int32), axis=1, dtype=jnp.int32)
    inverse = jnp.where(real, count - 1, count[:, -1:] + clock - count)
    order = jnp.zeros_like(inverse).at[jnp.arange(batch)[:, None], inverse].set(clock)
    return order, inverse


def renumbered(run: Int[Array, "B T"], position: Int[Array, "B T"], carried: Int[Array, " B"]) -> Segments:
    """The segments of some of a row's tokens; run ``carried``, of the last real token before them, becomes run 1."""
    real = run > 0
    run = jnp.where(real, run - carried[:, None] + 1, 0)
    seen = jnp.maximum(jax.lax.cummax(run, axis=1), 1)
    before = jnp.pad(seen[:, :-1], ((0, 0), (1, 0)), constant_values=1)
    return Segments(run, before, position, *partition(real))


@jax.custom_vjp
def _permute(x: Array, order: Array, inverse: Array) -> Array:
    return jax.vmap(lambda row, times: row[times])(x, order)  # rows are gathered whole, not element by element


def _permute_fwd(x: Array, order: Array, inverse: Array):
    return _permute(x, order, inverse), (order, inverse)


def _permute_bwd(residuals, g: Array):
    order, inverse = residuals
    return _permute(g, inverse, order), None, None  # a permutation's transpose is a gather, not a scatter


_permute.defvjp(_permute_fwd, _permute_bwd)


def compact(x: Array, segments: Segments) -> Array:
    """``x [B, T, ...]`` with the real tokens of each row first, so that neighbours in time are neighbours in memory."""
    return _permute(x, segments.order, segments.inverse)


def spread(x: Array, segments: Segments) -> Array:
    """The inverse of :func:`compact`: every token back at its own time."""
    return _permute(x, segments.inverse, segments.order)


def compacted(segments: Segments) -> Segments:
    """The segments of the compacted row: the same runs and positions, padding on the right, nothing left to move."""
    rows = jnp.broadcast_to(jnp.arange(segments.run.shape[1], dtype=jnp.int32), segments.run.shape)
    take = partial(jnp.take_along_axis, indices=segments.order, axis=1)
    run = take(segments.run)
    carried = jnp.where(run > 0, take(segments.carried_run), segments.last_run[:, None])
    return Segments(run, carried, take(segments.position), order=rows, inverse=rows)


def repeat(segments: Segments, times: int) -> Segments:
    """Every token ``times`` times in a row, all in its document: ``[B, T] -> [B, times T]``."""

    def each(x: Array) -> Array:  # what is i-th of T becomes i times, i times + 1, ... of times T
        inner = jnp.arange(times, dtype=x.dtype)[None, None]
        return (x[:, :, None] * times + inner).reshape(len(x), -1)

    run, carried = (jnp.repeat(x, times, axis=1) for x in (segments.run, segments.carried_run))
    first = jnp.arange(run.shape[1], dtype=jnp.int32)[None] % times == 0
    return Segments(
        run=run,
        carried_run=jnp.where(first | (run == 0), carried, run),
        position=jnp.where(run > 0, each(segments.position), 0),
        order=each(segments.order),
        inverse=each(segments.inverse),
    )
