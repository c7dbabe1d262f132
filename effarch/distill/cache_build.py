"""A cache of a teacher's likeliest next tokens: found, or built further from where it stopped.

It grows in ``<folder>.building``, held by one process, and is renamed into place when it is complete.
"""

import contextlib
import fcntl
import os
import sys
from collections.abc import Callable, Generator
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from effarch import axes
from effarch.config import UserError
from effarch.data.rows import Rows
from effarch.distill.cache import CacheConfig, TopKCache, cache_folder, cache_inputs
from effarch.distill.cache_writer import CacheWriter, Layout
from effarch.distill.chunked import HeadFn
from effarch.distill.objectives import CHUNK
from effarch.distill.quantise import encode
from effarch.distill.top_k import TopK, top_k
from effarch.models.lm import LM
from effarch.parallel.sharding import put_batch
from effarch.typing import Array, Float, PyTree


def open_cache(
    cache_dir: str | Path,
    teacher: LM,
    rows: Rows,
    config: CacheConfig,
    *,
    members: np.ndarray,
    temperature: float,
    rules: axes.Rules,
    batch_size: int,
    stopped: Callable[[], bool] = lambda: False,
    shard_rows: int | None = None,
) -> TopKCache:
    """The cache of a teacher on some rows, built (or built further) below ``cache_dir`` if it is not there.

    Says on standard error how large it will be before it starts, and what it costs in precision when it is there.

    Args:
      cache_dir: folder of caches.
      teacher: the model. rows: what it reads. members: numbers of the rows to keep, ascending.
      config: how much is kept. temperature: divides the teacher's logits.
      rules: of the mesh. batch_size: rows per step, a multiple of the devices that share a batch.
      stopped: asked after every batch. shard_rows: rows per file; None: as many as make up 2 GiB.

    Raises:
      CacheStopped: ``stopped()`` said so.
      UserError: k larger than the vocabulary, no room, another process at work on it, a damaged cache, none
        there and several processes.
    """
    members = np.ascontiguousarray(members, np.int64)
    inputs = cache_inputs(teacher, rows, members, config, temperature)
    folder = cache_folder(cache_dir, inputs)
    if not folder.exists():
        if jax.process_count() > 1:
            raise UserError("cache: expected one process to write it, got several; begin with one, go on with several")
        with _building(folder) as temporary:
            writer = CacheWriter(temporary, rows, members, inputs, shard_rows)
            writer.announce(folder)
            writer.write(_answers(teacher, config, temperature, rules, writer.layout), batch_size, stopped)
            writer.finish()
            os.replace(temporary, folder)
            writer.note.unlink(missing_ok=True)
    cache = TopKCache(folder)
    if cache.meta["inputs"] != inputs:
        raise UserError(f"cache: {folder} holds another one than its name says; delete it to build it again")
    print(_described(cache), file=sys.stderr)
    return cache


def likeliest(hidden: Float[Array, "B T D"], head: HeadFn, k: int, temperature: float, chunk: int = CHUNK) -> TopK:
    """:func:`effarch.distill.top_k.top_k` of a head's logits, of which ``chunk`` positions of a row exist at a time."""
    batch, time = hidden.shape[:2]
    chunk = min(chunk, time)
    count = -(-time // chunk)
    padded = jnp.pad(hidden, ((0, 0), (0, count * chunk - time), (0, 0)))
    parts = jnp.moveaxis(padded.reshape(batch, count, chunk, -1), 1, 0)
    found = jax.lax.map(lambda x: top_k(head(x), k, temperature), parts)
    return jax.tree.map(lambda x: jnp.moveaxis(x, 0, 1).reshape(batch, count * chunk, k)[:, :time], found)


def _answers(
    teacher: LM, config: CacheConfig, temperature: float, rules: axes.Rules, layout: Layout
) -> Callable[[dict[str, np.ndarray]], dict[str, np.ndarray]]:
    """``batch -> arrays of a shard, [B, T, ...]``: zeros at padding."""
    graph, params = nnx.split(teacher)

    def answers(params: PyTree, batch: dict[str, Array]) -> dict[str, Array]:
        with axes.rules(rules):
            lm: LM = nnx.merge(graph, params)
            hidden = lm.hidden(batch["tokens"], segment_ids=batch["segment_ids"]).hidden
            found = likeliest(hidden, lm.head, config.top_k, temperature)
        arrays = {"indices": found.indices, **encode(found.log_probs, config.bits)}
        real = batch["segment_ids"] > 0
        arrays = {k: jnp.where(real[..., None] if x.ndim == 3 else real, x, 0) for k, x in arrays.items()}
        return {name: x.astype(layout[name][1]) for name, x in arrays.items()}

    compiled = jax.jit(answers)

    def run(batch: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        read = {name: batch[name] for name in ("tokens", "segment_ids")}
        return jax.device_get(compiled(params, put_batch(read, rules)))

    return run


@contextlib.contextmanager
def _building(folder: Path) -> Generator[Path]:
    """The temporary folder, held by this process alone.

    Raises:
      UserError: it cannot be written, or another process holds it.
    """
    temporary = folder.with_name(f"{folder.name}.building")
    try:
        temporary.mkdir(parents=True, exist_ok=True)
        lock = os.open(temporary, os.O_RDONLY | os.O_DIRECTORY)
    except OSError as error:
        raise UserError(f"cache: cannot write {temporary}: {error.strerror}") from error
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield temporary
    except BlockingIOError as error:
        raise UserError(f"cache: another process is writing {temporary}") from error
    except OSError as error:
        raise UserError(f"cache: cannot write {temporary}: {error.strerror or error}") from error
    finally:
        os.close(lock)


def _described(cache: TopKCache) -> str:
    inputs, error = cache.meta["inputs"], cache.meta["error"]
    return (
        f"teacher's answers: {inputs['top_k']} of {inputs['vocab_size']} tokens in {inputs['bits']} bits; a"
        f" log-probability is off by at most {error['log_prob']:.1e} nats, KL by {error['kl']:.1e} nats; the other"
        f" tokens hold {cache.meta['rest']:.2%} on average ({cache.folder})"
    )
