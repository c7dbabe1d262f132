"""What a teacher says of every position, computed once: its k likeliest next tokens, in memory-mapped shards.

A cache belongs to rows of a set by their number, not to batches, so that order, batch size and epochs are free. Per row
of T positions it holds

    indices [T, K]   uint16 (uint32 where the vocabulary is larger)      codes [T, K]    8, 16 or 32 bits
    step    [T]      float32                                             mass  [T]       float32

where the last three are log-probabilities as :mod:`effarch.distill.quantise` writes them. What a student learns from is
the k likeliest tokens and the rest as one bucket: the k alone, made to sum to 1, are a biased teacher (2503.16870).
"""

import hashlib
import json
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pydantic
from flax import nnx

from effarch.config import Config, UserError
from effarch.data import storage
from effarch.data.batches import RowSet
from effarch.data.rows import Rows
from effarch.distill.quantise import Bits, decode
from effarch.distill.top_k import TopK
from effarch.models.lm import LM
from effarch.training.tree import flatten

VERSION = 1
KEY = "teacher"  # of a batch
ARRAYS = ("indices", "codes", "step", "mass")


class CacheConfig(Config):
    """The teacher's likeliest next tokens on disk, in place of the teacher in every step."""

    top_k: int = pydantic.Field(64, gt=0, description="tokens kept per position; the others are one bucket")
    bits: Bits = pydantic.Field(16, description="of a log-probability: 8, 16 or 32")
    rows: Literal["stage", "all"] = pydantic.Field(
        "stage", description="which rows: those that the stage reads, or all, for runs with other seeds and lengths"
    )


def cache_inputs(teacher: LM, rows: Rows, members: np.ndarray, config: CacheConfig, temperature: float) -> dict:
    """All that determines a cache: digests of the teacher, of the rows and of which of them, and how they are kept."""
    if config.top_k > teacher.config.vocab_size:
        raise UserError(
            f"cache.top_k: expected at most the vocabulary of {teacher.config.vocab_size}, got {config.top_k}"
        )
    return {
        "version": VERSION,
        "teacher": teacher_digest(teacher),
        "data": [storage.fingerprint(rows.folder / f"{name}.npy")["sha256"] for name in ("tokens", "segment_ids")],
        "members": hashlib.sha256(np.asarray(members, np.int64).tobytes()).hexdigest(),
        "rows": len(members),
        "seq_len": rows.seq_len,
        "vocab_size": teacher.config.vocab_size,
        "top_k": config.top_k,
        "bits": config.bits,
        "temperature": temperature,
    }


def cache_folder(cache_dir: str | Path, inputs: dict[str, Any]) -> Path:
    """Where the cache of these inputs is; its name holds a hash of them all."""
    key = hashlib.sha256(json.dumps(inputs, sort_keys=True).encode()).hexdigest()[:12]
    return Path(cache_dir) / f"teacher-top{inputs['top_k']}-{key}"


def teacher_digest(teacher: LM) -> str:
    """SHA-256 of a model's config and of every variable, bit for bit."""
    digest = hashlib.sha256(teacher.config.model_dump_json().encode())
    for name, x in flatten(nnx.split(teacher)[1]).items():
        array = np.ascontiguousarray(x)
        digest.update(f"{name} {array.dtype} {array.shape}".encode())
        digest.update(array.view(np.uint8).data if array.size else b"")
    return digest.hexdigest()


class TopKCache:
    """A finished cache.

    Args:
      folder: what :func:`effarch.distill.cache_build.build_cache` wrote.

    Attributes:
      meta: ``inputs``; ``error``, the bounds of :mod:`effarch.distill.quantise` in nats for the largest step in it;
        ``rest``, the mean share of the tokens that are not among the k, over real positions; ``versions``.

    Raises:
      UserError: a file is missing, truncated or changed.
    """

    def __init__(self, folder: str | Path) -> None:
        self.folder = Path(folder)
        self.meta = storage.read_meta(self.folder)
        self._members = np.load(self.folder / "members.npy", mmap_mode="r")
        self._shard_rows: int = self.meta["shard_rows"]
        count = -(-len(self._members) // self._shard_rows)
        self._shards = [open_shard(self.folder, number) for number in range(count)]

    def take(self, indices: np.ndarray) -> TopK:
        """What the teacher says of some rows of the set, ``[len(indices), T, K]``, in numpy arrays.

        Raises:
          ValueError: a row that is not in the cache.
        """
        indices = np.asarray(indices, np.int64)
        places = np.minimum(np.searchsorted(self._members, indices), len(self._members) - 1)
        missing = indices[self._members[places] != indices]
        if missing.size:
            raise ValueError(f"rows: expected rows of the cache {self.folder}, got {int(missing[0])}")
        found = {name: np.empty((len(indices), *x.shape[1:]), x.dtype) for name, x in self._shards[0].items()}
        shards = places // self._shard_rows
        for number in np.unique(shards):
            here = shards == number
            for name, array in self._shards[number].items():
                found[name][here] = array[places[here] - number * self._shard_rows]
        log_probs: Any = decode(found["codes"], found["step"], found["mass"])
        tokens: Any = found["indices"].astype(np.int32)
        return TopK(indices=tokens, log_probs=log_probs)


class CachedRows:
    """Rows with what the teacher says of them under ``"teacher"``, so that batches need no teacher."""

    def __init__(self, rows: RowSet, cache: TopKCache) -> None:
        self._rows, self._cache = rows, cache

    def __len__(self) -> int:
        """Number of rows of the whole set: the order of training is that without a cache."""
        return len(self._rows)

    @property
    def seq_len(self) -> int:
        """Tokens per row."""
        return self._rows.seq_len

    def take(self, indices: np.ndarray) -> dict[str, Any]:
        """Some rows; see :meth:`effarch.data.rows.Rows.take`."""
        return {**self._rows.take(indices), KEY: self._cache.take(indices)}


def open_shard(folder: Path, number: int, mode: Any = "r") -> dict[str, np.memmap]:
    """The arrays of one shard, memory-mapped."""
    return {name: np.load(shard_path(folder, name, number), mmap_mode=mode) for name in ARRAYS}


def shard_path(folder: Path, name: str, number: int) -> Path:
    """Where an array of a shard is."""
    return folder / f"{name}-{number:05}.npy"
