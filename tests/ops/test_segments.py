"""Runs, positions and compaction of packed rows."""

import jax.numpy as jnp
import numpy as np
import pytest

from effarch.ops.segments import as_segments, compact, compacted, spread
from tests.ops.recurrence_cases import random_segments


def test_runs_and_positions():
    ids = jnp.asarray([[0, 7, 7, 0, 7, 3, 0, 7], [1, 1, 2, 2, 2, 0, 0, 0]])
    segments = as_segments(ids)
    assert segments.run.tolist() == [[0, 2, 2, 0, 2, 3, 0, 4], [1, 1, 2, 2, 2, 0, 0, 0]]
    assert segments.position.tolist() == [[0, 0, 1, 0, 2, 0, 0, 0], [0, 1, 0, 1, 2, 0, 0, 0]]
    assert segments.carried_run.tolist() == [[1, 1, 2, 2, 2, 2, 3, 3], [1, 1, 1, 2, 2, 2, 2, 2]]
    assert segments.last_run.tolist() == [4, 2]


def test_the_carried_document_goes_on():
    ids = jnp.asarray([[0, 5, 5, 6], [5, 5, 5, 5]])
    segments = as_segments(ids, last_segment=jnp.asarray([5, 4]), length=jnp.asarray([10, 10]))
    assert segments.run.tolist() == [[0, 1, 1, 2], [2, 2, 2, 2]]
    assert segments.position.tolist() == [[0, 10, 11, 0], [0, 1, 2, 3]]


def test_runs_of_runs_are_themselves():
    ids = random_segments(np.random.default_rng(0), 8, 40)
    once = as_segments(ids)
    assert (as_segments(once.run).run == once.run).all()
    assert as_segments(once) is once and as_segments(None) is None


def test_compaction_is_a_stable_partition():
    ids = random_segments(np.random.default_rng(1), 8, 40)
    segments = as_segments(ids)
    clock = jnp.broadcast_to(jnp.arange(40), ids.shape)
    for row, real in zip(compact(clock, segments), ids > 0, strict=True):
        n = int(real.sum())
        assert row[:n].tolist() == np.flatnonzero(real).tolist()
    assert (spread(compact(clock, segments), segments) == clock).all()
    inner = compacted(segments)
    assert (spread(inner.run, segments) == segments.run).all()
    assert (spread(inner.position, segments) == segments.position).all()


def test_wrong_arrays_are_refused():
    with pytest.raises(ValueError, match=r"segment_ids: expected an integer array \[B, T\], got float32\[3\]"):
        as_segments(jnp.ones(3))
