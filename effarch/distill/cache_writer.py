"""Writes the rows of a cache one after the other, so that whoever kills it loses only what was not yet on the disk.

Rows count as written once they are flushed and a file beside the folder says so.
"""

import contextlib
import json
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from effarch.config import UserError
from effarch.data import storage
from effarch.data.rows import Rows
from effarch.distill.cache import open_shard, shard_path
from effarch.distill.quantise import CODES, worst_case
from effarch.training.metrics import progress
from effarch.training.run import versions, write_atomic

SHARD_BYTES = 2**31
FLUSH_EVERY = 16  # batches

Layout = dict[str, tuple[tuple[int, ...], np.dtype]]  # of every array: shape of a row, dtype


class CacheStopped(Exception):
    """A signal came; what was written stays, and the next call goes on from there."""


class CacheWriter:
    """Writes a cache into a folder, from the row at which another writer stopped.

    Args:
      folder: temporary, held by this process alone. rows: what the teacher reads. members: which of them, ascending.
      inputs: of the cache (:func:`effarch.distill.cache.cache_inputs`). shard_rows: rows per file; None: as many as
        make up 2 GiB. A writer that goes on keeps those of the one before.

    Attributes:
      layout: of the arrays. done: rows that are written for good. note: the file that says so; to be removed when the
        folder is in its place.
    """

    def __init__(
        self, folder: Path, rows: Rows, members: np.ndarray, inputs: dict[str, Any], shard_rows: int | None = None
    ) -> None:
        layout = layout_of(inputs)
        shard_rows = shard_rows or max(SHARD_BYTES // _row_bytes(layout), 1)
        self.folder, self.rows, self.members, self.inputs, self.layout = folder, rows, members, inputs, layout
        self.shard_rows, self.done = shard_rows, 0
        self.note = folder.with_name(f"{folder.name}.json")
        with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
            note = json.loads(self.note.read_text())
            if note["inputs"] == inputs:
                self.shard_rows = note["shard_rows"]
                self.done = self._sound(note["rows"])

    def _rows_of(self, shard: int) -> int:
        return min(self.shard_rows, len(self.members) - shard * self.shard_rows)

    def _sound(self, done: int) -> int:
        """``done``, or the first row of a shard that is missing or of another size."""
        for shard in range(-(-done // self.shard_rows)):
            try:
                arrays = open_shard(self.folder, shard)
            except (OSError, ValueError, EOFError):
                return shard * self.shard_rows
            for name, (shape, dtype) in self.layout.items():
                if arrays[name].shape != (self._rows_of(shard), *shape) or arrays[name].dtype != dtype:
                    return shard * self.shard_rows
        return done

    def announce(self, folder: Path) -> None:
        """Says what will be written; refuses where there is no room."""
        row, total = _row_bytes(self.layout), len(self.members)
        left = (total - self.done // self.shard_rows * self.shard_rows) * row
        free = shutil.disk_usage(self.folder).free
        shape = f"{total:,} rows x {self.inputs['seq_len']} tokens x {self.inputs['top_k']} likeliest"
        there = f", {self.done:,} rows are there" if self.done else ""
        print(f"teacher's answers: {shape}, {shown(total * row)} in {folder}{there}", file=sys.stderr)
        if left > free:
            raise UserError(f"cache: expected {shown(left)} of free disk for {folder}, got {shown(free)}")

    def write(
        self,
        answers: Callable[[dict[str, np.ndarray]], dict[str, np.ndarray]],
        batch_size: int,
        stopped: Callable[[], bool] = lambda: False,
    ) -> None:
        """Every row that is missing.

        Args:
          answers: from a batch of rows to the arrays of the cache, ``[batch_size, T, ...]``.
          batch_size: rows at a time. stopped: asked after each.

        Raises:
          CacheStopped: ``stopped()`` said so.
        """
        shard, arrays, since = -1, {}, 0
        with progress(len(self.members), "teacher's answers", self.done) as advance:
            at = self.done
            while at < len(self.members):
                if at // self.shard_rows != shard:
                    shard, arrays = at // self.shard_rows, self._shard(at)
                first = at - shard * self.shard_rows
                count = min(batch_size, self._rows_of(shard) - first)
                numbers = np.full(batch_size, len(self.rows), np.int64)  # beyond the set: rows of padding
                numbers[:count] = self.members[at : at + count]
                for name, x in answers(self.rows.take(numbers)).items():
                    arrays[name][first : first + count] = x[:count]
                at, since = at + count, since + 1
                halt = stopped()
                if halt or since >= FLUSH_EVERY or first + count == self._rows_of(shard):
                    self._record(arrays, at)
                    since = 0
                advance(at)
                if halt:
                    raise CacheStopped

    def _shard(self, at: int) -> dict[str, np.memmap]:
        """The arrays that row ``at`` belongs to: new where it is the first of them."""
        shard = at // self.shard_rows
        if at % self.shard_rows:
            return open_shard(self.folder, shard, "r+")
        count = self._rows_of(shard)
        return {
            name: storage.create(shard_path(self.folder, name, shard), (count, *shape), dtype)
            for name, (shape, dtype) in self.layout.items()
        }

    def _record(self, arrays: dict[str, np.memmap], at: int) -> None:
        for array in arrays.values():
            array.flush()
        note = {"inputs": self.inputs, "shard_rows": self.shard_rows, "rows": at}
        write_atomic(self.note, json.dumps(note))
        self.done = at

    def finish(self) -> None:
        """Bounds, and ``meta.json``."""
        largest, rest, real = 0.0, 0.0, 0
        for shard in range(-(-len(self.members) // self.shard_rows)):
            arrays = open_shard(self.folder, shard)
            largest = max(largest, float(arrays["step"].max()))
            members = self.members[shard * self.shard_rows :][: self._rows_of(shard)]
            for start in range(0, len(members), 1024):
                here = slice(start, start + 1024)
                counted = self.rows.take(members[here])["segment_ids"] > 0
                mass = np.asarray(arrays["mass"][here], np.float64)[counted]
                rest, real = rest - float(np.expm1(mass).sum()), real + int(counted.sum())
        np.save(self.folder / "members.npy", self.members)
        (self.folder / storage.META).unlink(missing_ok=True)  # of a writer that was killed here
        storage.write_meta(
            self.folder,
            {
                "inputs": self.inputs,
                "shard_rows": self.shard_rows,
                "error": worst_case(largest, self.inputs["bits"]),
                "rest": rest / max(real, 1),
                "versions": versions(),
            },
        )


def layout_of(inputs: dict[str, Any]) -> Layout:
    """Shape of one row and dtype of every array."""
    time, k = inputs["seq_len"], inputs["top_k"]
    index = np.dtype(np.uint16 if inputs["vocab_size"] <= 2**16 else np.uint32)
    number = np.dtype(np.float32)
    return {
        "indices": ((time, k), index),
        "codes": ((time, k), CODES[inputs["bits"]]),
        "step": ((time,), number),
        "mass": ((time,), number),
    }


def _row_bytes(layout: Layout) -> int:
    return sum(int(np.prod(shape)) * dtype.itemsize for shape, dtype in layout.values())


def shown(count: float) -> str:
    """Bytes, for people."""
    return f"{count / 2**30:.1f} GiB" if count >= 2**30 else f"{count / 2**20:.1f} MiB"
