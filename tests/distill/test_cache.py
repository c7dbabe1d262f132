"""The cache of a teacher's answers: what is in it, how it survives being killed, what it refuses."""

import fcntl
import os
import shutil
import signal
import subprocess
import sys
from functools import lru_cache
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from effarch.config import UserError
from effarch.data import storage
from effarch.data.batches import Batches, DataPosition
from effarch.data.rows import Rows
from effarch.distill import cache_build
from effarch.distill.cache import CacheConfig, CachedRows, cache_inputs, teacher_digest
from effarch.distill.cache_build import likeliest, open_cache
from effarch.distill.cache_writer import CacheStopped, CacheWriter
from effarch.distill.stages import Logits, OnPolicy
from effarch.parallel.mesh import MeshConfig, make_mesh
from effarch.parallel.rules import make_rules
from tests.models import tiny

N, T, B = 21, 20, 4
TEACHER = tiny.config("softmax_attention", layers=2)


def write_rows(folder: Path) -> Rows:
    """Rows of two documents and padding."""
    rng = np.random.default_rng(0)
    ids = np.where(np.arange(T) < rng.integers(4, 9, (N, 1)), 1, 2) * (np.arange(T) < rng.integers(12, T + 1, (N, 1)))
    arrays = {"tokens": rng.integers(0, tiny.VOCAB, (N, T)) * (ids > 0), "segment_ids": ids, "loss_mask": ids > 0}
    for name, x in arrays.items():
        storage.create(folder / f"{name}.npy", (N, T), np.uint16)[:] = x
    return Rows(folder, tiny.VOCAB)


@pytest.fixture(scope="module")
def rows(tmp_path_factory) -> Rows:
    return write_rows(tmp_path_factory.mktemp("rows"))


@lru_cache
def rules(devices: int = 4):
    return make_rules(make_mesh(MeshConfig(), jax.devices()[:devices]))


@pytest.fixture(autouse=True, scope="module")
def compiled_once():
    """The teacher's program is shared: compiling is what these tests spend their time on."""
    make, memo = cache_build._answers, {}

    def answers(teacher, *rest):
        key = (*rest[:2], teacher_digest(teacher))
        return memo[key] if key in memo else memo.setdefault(key, make(teacher, *rest))

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(cache_build, "_answers", answers)
        yield


def opened(folder: Path, rows: Rows, members=None, temperature: float = 1.0, **options):
    given = {name: options.pop(name) for name in ("stopped", "shard_rows") if name in options}
    return open_cache(
        folder,
        tiny.model(TEACHER),
        rows,
        CacheConfig(**{"top_k": 5, "bits": 32} | options),
        members=np.arange(N) if members is None else members,
        temperature=temperature,
        rules=rules(),
        batch_size=B,
        **given,
    )


def reference(rows: Rows, temperature: float) -> np.ndarray:
    """Log-probabilities [N, T, V] in float64."""
    data = rows.take(np.arange(N))
    lm = tiny.model(TEACHER)
    graph, params = tiny.split(TEACHER)
    hidden = tiny.hidden(graph, "chunkwise", (), params, data["tokens"], None, data["segment_ids"]).hidden
    logits = np.asarray(lm.head(hidden), np.float64) / temperature
    return logits - np.log(np.exp(logits).sum(-1, keepdims=True))


@pytest.mark.parametrize(("k", "bits", "temperature"), [(tiny.VOCAB, 32, 1.0), (5, 16, 2.0), (5, 8, 2.0)])
def test_it_holds_what_the_teacher_says(rows, tmp_path, capsys, k, bits, temperature):
    """Of every real position, over several files, in the order asked for, on several devices."""
    cache = opened(tmp_path, rows, top_k=k, bits=bits, temperature=temperature, shard_rows=8)
    said = capsys.readouterr().err
    assert f"{N} rows x {T} tokens x {k} likeliest" in said and "MiB" in said and f"in {bits} bits" in said
    assert len(list(cache.folder.glob("codes-*.npy"))) == 3
    wanted, order = reference(rows, temperature), np.asarray([20, 3, 3, 11, 0])
    found = cache.take(order)
    assert found.indices.dtype == np.int32 and found.log_probs.dtype == np.float32
    assert found.indices.shape == found.log_probs.shape == (5, T, k)
    real = rows.take(order)["segment_ids"] > 0
    assert not found.indices[~real].any() and np.isfinite(found.log_probs).all()
    best = np.sort(wanted[order], -1)[..., ::-1][..., :k]
    bound = cache.meta["error"]["log_prob"] + 1e-5
    assert np.abs(found.log_probs - best)[real].max() < bound
    assert np.abs(np.take_along_axis(wanted[order], found.indices, -1) - best)[real].max() < 1e-5
    everywhere = rows.take(np.arange(N))["segment_ids"] > 0
    rest = 1 - np.exp(np.sort(wanted, -1)[..., -k:]).sum(-1)[everywhere].mean()
    assert cache.meta["rest"] == pytest.approx(rest, abs=1e-6)
    assert cache.meta["inputs"]["teacher"] == teacher_digest(tiny.model(TEACHER)) and "jax" in cache.meta["versions"]


def test_chunks_do_not_matter():
    lm = tiny.model(TEACHER)
    hidden = jnp.asarray(np.random.default_rng(0).normal(size=(2, 20, 32)), jnp.float32)
    whole, parts = jax.jit(lambda x: [likeliest(x, lm.head, 7, 1.0, chunk) for chunk in (256, 6)])(hidden)
    assert (whole.indices == parts.indices).all() and np.allclose(whole.log_probs, parts.log_probs, atol=1e-6)


def test_batches_come_with_it(rows, tmp_path):
    """The rows of a stage only; the order of training stays that without a cache."""
    plain = Batches(rows, B, seed=3)
    begun = DataPosition(0, 3)
    members = plain.rows_read(begun, 4)  # over the end of an epoch
    read, position = [], begun
    for _ in range(4):
        read.append(plain.batch_at(position)["tokens"])
        position = plain.next_position(position)
    assert position == DataPosition(1, 2)
    assert len(members) <= 4 * B < N
    np.testing.assert_array_equal(
        np.unique(np.concatenate(read), axis=0), np.unique(rows.take(members)["tokens"], axis=0)
    )
    cached = Batches(CachedRows(rows, opened(tmp_path, rows, members)), B, seed=3)
    for n, tokens in enumerate(read):
        batch = cached.batch_at(DataPosition(*divmod(3 + n, cached.batches_per_epoch)))
        np.testing.assert_array_equal(batch["tokens"], tokens)
        assert batch["teacher"].indices.shape == (B, T, 5)
    absent = np.setdiff1d(np.arange(N), members)
    with pytest.raises(ValueError, match=f"rows: expected rows of the cache .*, got {absent[0]}"):
        cached.rows.take(absent[:1])


def counted(monkeypatch) -> list[int]:
    """Rows that the teacher answers."""
    made, seen = cache_build._answers, []

    def answers(*arguments):
        run = made(*arguments)
        return lambda batch: seen.append(int((batch["segment_ids"].sum(1) > 0).sum())) or run(batch)

    monkeypatch.setattr(cache_build, "_answers", answers)
    return seen


def arrays(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.glob("*.npy"))}


def test_it_goes_on_where_it_was_stopped_and_is_used_again(rows, tmp_path, monkeypatch, capsys):
    seen = counted(monkeypatch)
    whole = opened(tmp_path / "whole", rows, shard_rows=8)
    assert sum(seen) == N
    seen.clear()
    with pytest.raises(CacheStopped):
        opened(tmp_path / "parts", rows, shard_rows=8, stopped=lambda: len(seen) == 3)
    assert sum(seen) == 3 * B and len(list((tmp_path / "parts").glob("*.building"))) == 1
    capsys.readouterr()
    parts = opened(tmp_path / "parts", rows)
    assert f"{3 * B} rows are there" in capsys.readouterr().err
    assert sum(seen) == N and arrays(parts.folder) == arrays(whole.folder) and parts.meta == whole.meta
    assert [path.name for path in (tmp_path / "parts").iterdir()] == [parts.folder.name]
    seen.clear()
    opened(tmp_path / "parts", rows)
    assert not seen


def test_what_is_not_on_the_disk_is_computed_again(rows, tmp_path, monkeypatch):
    """A file of the unfinished folder that is shorter than it should be: from the first row of that file."""
    seen = counted(monkeypatch)
    whole = opened(tmp_path / "whole", rows, shard_rows=8)
    seen.clear()
    with pytest.raises(CacheStopped):
        opened(tmp_path / "parts", rows, shard_rows=8, stopped=lambda: len(seen) == 5)
    (building,) = (tmp_path / "parts").glob("*.building")
    path = building / "codes-00001.npy"
    path.write_bytes(path.read_bytes()[:-7])
    seen.clear()
    parts = opened(tmp_path / "parts", rows, shard_rows=8)
    assert sum(seen) == N - 8 and arrays(parts.folder) == arrays(whole.folder)


def noise(batch: dict) -> dict[str, np.ndarray]:
    """Answers without a teacher: a function of the row."""
    shape = batch["tokens"].shape
    first = batch["tokens"].sum(1)[:, None] + np.arange(shape[1])
    codes = first[..., None] * np.arange(1, 6) % 251
    return {"indices": codes, "codes": codes, "step": first / 1e3, "mass": -first / 1e3}


def writer(folder: Path, rows: Rows) -> CacheWriter:
    members = np.arange(N)
    inputs = {"seq_len": T, "top_k": 5, "bits": 8, "vocab_size": 300}
    return CacheWriter(folder, rows, members, inputs, 8)


PROCESS = """
import sys, time
from pathlib import Path
from effarch.data.rows import Rows
from effarch.distill import cache_writer
from tests.distill import test_cache as t
cache_writer.FLUSH_EVERY = 1
def slow(batch):
    print("answered", flush=True)
    time.sleep(0.02)
    return t.noise(batch)
t.writer(Path(sys.argv[2]), Rows(sys.argv[1], 61)).write(slow, 1)
"""


def test_kill_9_loses_nothing_that_was_recorded(rows, tmp_path):
    """A real process, killed while it writes."""
    running = subprocess.Popen(
        [sys.executable, "-c", PROCESS, str(rows.folder), str(tmp_path / "x")], stdout=subprocess.PIPE, text=True
    )
    assert running.stdout is not None
    for _ in range(12):
        assert running.stdout.readline()
    running.kill()
    running.communicate()
    assert running.returncode == -signal.SIGKILL
    again, seen = writer(tmp_path / "x", rows), []
    before = again.done
    assert 10 <= before < N
    again.write(lambda batch: seen.append(1) or noise(batch), 1)
    assert len(seen) == N - before
    writer(tmp_path / "whole", rows).write(noise, B)
    assert arrays(tmp_path / "x") == arrays(tmp_path / "whole")


def test_another_teacher_or_temperature_is_another_cache(rows):
    teacher, config = tiny.model(TEACHER), CacheConfig(top_k=5)
    one = cache_inputs(teacher, rows, np.arange(N), config, 1.0)
    graph, params = tiny.split(TEACHER)
    moved = nnx.merge(graph, jax.tree.map(lambda x: np.nextafter(np.asarray(x), 9), params))
    capped = tiny.model(TEACHER)
    capped.config = TEACHER.replace(logit_cap=3.0)
    others = [
        cache_inputs(moved, rows, np.arange(N), config, 1.0),
        cache_inputs(capped, rows, np.arange(N), config, 1.0),
        cache_inputs(teacher, rows, np.arange(N - 1), config, 1.0),
        cache_inputs(teacher, rows, np.arange(N), config.replace(bits=8), 1.0),
        cache_inputs(teacher, rows, np.arange(N), config, 2.0),
    ]
    assert one == cache_inputs(tiny.model(TEACHER), rows, np.arange(N), config.replace(rows="all"), 1.0)
    assert all(one != other for other in others)


def test_refusals(rows, tmp_path, monkeypatch):
    with pytest.raises(UserError, match="cache.top_k: expected at most the vocabulary of 61, got 62"):
        opened(tmp_path, rows, top_k=62)
    free = shutil.disk_usage(tmp_path)
    with monkeypatch.context() as patched:
        patched.setattr(shutil, "disk_usage", lambda _: free._replace(free=1000))
        with pytest.raises(UserError, match=r"cache: expected 0.0 MiB of free disk for .*, got 0.0 MiB"):
            opened(tmp_path, rows)
    with pytest.raises(CacheStopped):
        opened(tmp_path, rows, stopped=lambda: True)
    (building,) = tmp_path.glob("*.building")
    lock = os.open(building, os.O_RDONLY | os.O_DIRECTORY)
    fcntl.flock(lock, fcntl.LOCK_EX)
    with pytest.raises(UserError, match="cache: another process is writing"):
        opened(tmp_path, rows)
    os.close(lock)
    cache = opened(tmp_path, rows)
    path = cache.folder / "mass-00000.npy"
    path.write_bytes(path.read_bytes()[:-1] + b"x")
    with pytest.raises(UserError, match=r"mass-00000.npy is corrupt"):
        opened(tmp_path, rows)


def test_stages_that_cannot_read_one():
    with pytest.raises(ValueError, match="expected null, for no cache knows what the student will write"):
        OnPolicy(cache=CacheConfig())
    teacher = tiny.model(TEACHER)
    Logits(cache=CacheConfig(top_k=61)).check(teacher, teacher)
    with pytest.raises(ValueError, match="cache.top_k: expected at most the vocabulary of 61, got 64"):
        Logits(cache=CacheConfig()).check(teacher, teacher)
