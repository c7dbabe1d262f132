import dataclasses
import gc
import json
import os
import resource
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from effarch.config import UserError
from effarch.parallel.mesh import MeshConfig
from effarch.training import checkpoint
from tests.training import toy

ROOT = Path(__file__).parents[2]
NOTE = {"config": "a: 1\n", "versions": {"jax": "x"}}


def start(folder, steps, every):
    shared = {
        "JAX_COMPILATION_CACHE_DIR": str(folder.parent / "cache"),
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
    }
    return subprocess.Popen(
        [sys.executable, "-m", "tests.training.toy_process", str(folder), str(steps), str(every)],
        cwd=ROOT,
        env={**os.environ, **shared},  # XLA_FLAGS too: with others the bits would differ
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def finish(process):
    out, err = process.communicate(timeout=400)
    assert process.returncode == 0, err[-2000:]
    return out.splitlines()


def kill_at(process, step, delay):
    lines = []
    for line in process.stdout:
        lines.append(line.strip())
        if line.startswith(f"step {step} "):
            break
    time.sleep(delay)
    os.kill(process.pid, signal.SIGKILL)
    process.communicate()
    assert process.returncode == -signal.SIGKILL
    assert lines[-1].startswith(f"step {step} ")
    return lines


def check_kills(folder, kills, steps=24, every=3):
    expected, seen = [], {}
    expected.append("digest " + toy.train(folder / "whole", steps, every, report=expected.append))
    for number, (step, delay) in enumerate(kills):
        lines = kill_at(start(folder / "killed", steps, every), step, delay)
        seen.update(line.split(" ", 2)[1:] for line in lines if line.startswith("step"))
        assert (lines[0] == "start 0") == (number == 0)
    resumed = finish(start(folder / "killed", steps, every))
    assert int(resumed[0].split()[1]) > 0, "the second process began anew"
    assert not [p for p in (folder / "killed" / "checkpoints").iterdir() if not p.name.isdigit()], "left behind"
    assert resumed[-1] == expected[-1], "final state or data position differ"
    seen.update(line.split(" ", 2)[1:] for line in resumed if line.startswith("step"))
    assert seen == dict(line.split(" ", 2)[1:] for line in expected if line.startswith("step"))


def test_resume_after_kill_is_bit_identical(tmp_path):
    check_kills(tmp_path, [(7, 0.0)])


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(3))
def test_resume_after_many_kills_is_bit_identical(tmp_path, seed):
    rng = np.random.default_rng(seed)
    steps = sorted(rng.choice(np.arange(5, 23), 3, replace=False).tolist())
    check_kills(tmp_path, [(s, rng.uniform(0, 0.05)) for s in steps])


@pytest.fixture(scope="module")
def run():
    return toy.setup()


def test_save_and_restore_everything(tmp_path, run):
    now = run.init()
    advance = run.compiled(noise=0.1)
    with checkpoint.Checkpoints(tmp_path, every=2, keep=2) as saved:
        assert saved.latest() is None
        for i in range(1, 7):
            now, _ = advance(now, toy.batch_at(0, i))
            assert saved.save(i, now, (1, i), NOTE) == (i % 2 == 0)
        assert not saved.save(6, now, (1, 6), NOTE, force=True)  # there already
        now, _ = advance(now, toy.batch_at(0, 7))
        assert saved.save(7, now, (1, 7), NOTE, force=True)
        kept = jax.tree.map(np.asarray, now)
        restored, position, note = saved.restore(7, run.abstract)
        assert saved.latest() == 7 and position == (1, 7) and note == NOTE
    assert toy.same_bits(restored, kept)
    assert jax.tree.structure(restored) == jax.tree.structure(now)
    assert sorted(p.name for p in (tmp_path / "checkpoints").iterdir()) == ["6", "7"]
    again, _ = advance(restored, toy.batch_at(0, 8))
    once, _ = advance(now, toy.batch_at(0, 8))
    assert toy.same_bits(again, once)


def test_restore_to_another_mesh(tmp_path, run):
    wide = toy.setup(MeshConfig(data=2, fsdp=4), 8)
    with checkpoint.Checkpoints(tmp_path, every=1, keep=1) as saved:
        now = run.init()
        saved.save(1, now, (0, 1), NOTE)
        restored, _, _ = saved.restore(1, wide.abstract)
    assert toy.same_bits(restored, now)
    assert restored.params["embed"].get_value().sharding == wide.shardings.params["embed"].get_value()


def test_donation_does_not_reach_a_save_under_way(tmp_path):
    bump = jax.jit(lambda t: jax.tree.map(lambda x: x + jnp.ones((), x.dtype), t), donate_argnums=0)
    noise = {"w": jax.random.normal(jax.random.key(0), (400, 1000)), "b": jnp.zeros((7,))}
    now, kept = bump(noise), {}
    with checkpoint.Checkpoints(tmp_path, every=1, keep=9) as saved:
        for i in range(1, 4):
            kept[i] = jax.tree.map(lambda x: np.array(x, copy=True), now)
            saved.save(i, now, (0, i), NOTE)
            for _ in range(5):
                now = bump(now)
        jax.block_until_ready(now)
        for i, expected in kept.items():
            assert toy.same_bits(saved.restore(i, now)[0], expected), f"checkpoint {i} holds later values"


def test_keys_and_every_dtype_survive(tmp_path):
    tree = {
        "key": jax.random.key(3),
        "keys": jax.random.split(jax.random.key(3), 4),
        "bf16": jnp.arange(5, dtype=jnp.bfloat16),
        "bool": jnp.array([True, False, True]),
        "u8": jnp.arange(3, dtype=jnp.uint8),
        "scalar": jnp.int32(-4),
    }
    with checkpoint.Checkpoints(tmp_path, every=1, keep=1) as saved:
        saved.save(1, tree, (0, 0), {})
        found = saved.restore(1, jax.eval_shape(lambda: tree))[0]
    for name, x in tree.items():
        assert found[name].dtype == x.dtype and found[name].shape == x.shape, name
        assert bool((found[name] == x).all()), name


def save_one(folder, run):
    with checkpoint.Checkpoints(folder, every=1, keep=1) as saved:
        saved.save(1, run.init(), (0, 1), NOTE)
    return folder / "checkpoints" / "1"


def test_mismatch_is_a_short_diff(tmp_path, run):
    save_one(tmp_path, run)
    other = toy.setup(width=12)
    with checkpoint.Checkpoints(tmp_path, every=1, keep=1) as saved:
        with pytest.raises(UserError) as caught:
            saved.restore(1, other.abstract)
        assert len(caught.value.lines) <= 7
        assert "checkpoints/1: the checkpoint belongs to another model or optimizer" in caught.value.lines[0]
        assert "params.embed: expected float32[16, 12], the checkpoint has float32[16, 8]" in caught.value.lines
        assert caught.value.lines[-1].startswith("... and ")
        extra = run.abstract.params | {"more": jax.ShapeDtypeStruct((2,), jnp.float32)}
        with pytest.raises(UserError, match=r"params.more: expected float32\[2\], not in the checkpoint"):
            saved.restore(1, dict(params=extra))
        with pytest.raises(UserError, match=r"params.gain: float32\[8\] in the checkpoint, not expected"):
            fewer = {name: x for name, x in run.abstract.params.items() if name != "gain"}
            saved.restore(1, dataclasses.replace(run.abstract, params=fewer))
        half = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, jnp.bfloat16), run.abstract.params["gain"])
        with pytest.raises(UserError, match=r"expected bfloat16\[8\], the checkpoint has float32\[8\]"):
            checkpoint.restore_params(tmp_path, {"gain": half}, {})


def damage(path, how):
    content = path.read_bytes()
    if how == "remove":
        path.unlink()
    elif how == "halve":
        path.write_bytes(content[: len(content) // 2])
    else:
        flipped = bytearray(content)
        flipped[len(content) // 2] ^= 0x10
        path.write_bytes(bytes(flipped))


@pytest.mark.parametrize("how", ["remove", "halve", "flip"])
@pytest.mark.parametrize("which", ["_CHECKPOINT_METADATA", "state/_METADATA", "state/manifest.ocdbt", "data"])
def test_damaged_checkpoint_is_one_line(tmp_path, capfd, which, how):
    tree = {"w": jax.random.normal(jax.random.key(0), (64, 64))}  # not compressible: its bytes are stored as they are
    with checkpoint.Checkpoints(tmp_path, every=1, keep=1) as saved:
        saved.save(1, tree, (0, 1), NOTE)
    folder = tmp_path / "checkpoints" / "1"
    files = sorted((p for p in folder.rglob("*") if p.is_file()), key=lambda p: p.stat().st_size)
    damage(files[-1] if which == "data" else folder / which, how)
    with checkpoint.Checkpoints(tmp_path, every=1, keep=1) as saved, pytest.raises(UserError) as caught:
        saved.restore(1, jax.eval_shape(lambda: tree))
    assert len(caught.value.lines) == 1 and "\n" not in caught.value.lines[0] and len(caught.value.lines[0]) < 400
    assert f"{folder}: the checkpoint cannot be read" in caught.value.lines[0]
    del caught
    gc.collect()
    assert capfd.readouterr().err == ""  # nothing of what orbax has to say about it


def test_what_a_killed_save_leaves_is_ignored_and_removed(tmp_path, run):
    folder = save_one(tmp_path, run)
    left = tmp_path / "checkpoints" / "2.orbax-checkpoint-tmp"
    shutil.copytree(folder, left)
    assert checkpoint.latest_step(tmp_path) == 1 and left.exists()  # a reader removes nothing
    with checkpoint.Checkpoints(tmp_path, every=1, keep=1) as saved:
        assert saved.latest() == 1
    assert not left.exists()


def test_failed_background_save_raises_at_close(tmp_path):
    tree = {"w": jax.random.normal(jax.random.key(0), (500, 1000))}
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    saved = checkpoint.Checkpoints(tmp_path, every=1, keep=1)
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, hard))  # as a full disk
        with pytest.raises(UserError, match="checkpoints: a checkpoint could not be written"):
            saved.save(1, tree, (0, 1), NOTE)
            saved.close()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert checkpoint.latest_step(tmp_path) is None


def test_restore_params_only(tmp_path, run):
    save_one(tmp_path, run)
    step, note = checkpoint.read_metadata(tmp_path)
    assert (step, note) == (1, NOTE)
    bare = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), (run.abstract.params, run.abstract.rest))
    params, rest = checkpoint.restore_params(tmp_path, *bare)
    assert toy.same_bits((params, rest), (run.init().params, run.init().rest))
    with pytest.raises(UserError, match="expected a checkpoint, found none"):
        checkpoint.read_metadata(tmp_path / "nowhere")
    with pytest.raises(UserError, match="checkpoints/5: the checkpoint cannot be read"):
        checkpoint.restore_params(tmp_path, *bare, step=5)
    json.dumps(note)
