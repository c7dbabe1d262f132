"""Commands of the visible loops on a corpus so small that compiling is all they cost."""

import contextlib
import os
import random
import subprocess
import sys
import time
from pathlib import Path

import jax
import numpy as np
import pytest
from orbax.checkpoint import v1 as ocp

ATTENTION = "{type: softmax_attention, num_heads: 2, num_kv_heads: 1, head_dim: 16}"
LAYER = f"{{mixer: {ATTENTION}, channel: {{type: swiglu, hidden: 32}}}}"
MODEL = ("dim=32", "num_layers=2", f"pattern=[{LAYER}]")


def corpus(folder: Path) -> str:
    """Forty small files; a pattern that matches them."""
    folder.mkdir()
    words = ["state", "decay", "gate", "token", "query", "value", "chunk", "layer"]
    rng = random.Random(0)
    for n in range(40):
        text = f"file {n}: " + " ".join(rng.choice(words) for _ in range(rng.randrange(20, 120)))
        (folder / f"{n:02}.txt").write_text(text)
    return str(folder / "*.txt")


def shared(root: Path, files: str) -> list[str]:
    """Overrides of every run; ``root`` holds its folders, the prepared data too."""
    return [
        f"output_dir={root / 'runs'}",
        f"cache_dir={root / 'data'}",
        f"data.source={{type: text_files, files: ['{files}']}}",
        "data.recall.fraction=0.2",
        "data.recall.eval_rows=8",
        "seq_len=64",
        "batch_size=8",
        "log.every=1",
        "eval.rows=8",
        "eval.window=16",
        "eval.lengths=[64]",
        "eval.tokens=512",
        "eval.depths=[0,1]",
        "eval.trials=4",
        "eval.contexts=[96]",
    ]


def pretrain(root: Path, files: str, *more: str) -> list[str]:
    """The arguments of ``train.pretrain``."""
    return [*shared(root, files), *(f"model.{word}" for word in MODEL), *more]


def distill(root: Path, files: str, *more: str) -> list[str]:
    """The arguments of ``train.distill``: a teacher, two stages, the student from scratch."""
    return [
        *shared(root, files),
        *(f"teacher.model.{word}" for word in MODEL),
        "teacher.steps=6",
        "student.mixer=retnet",
        "stages=[{type: align, steps: 4}, {type: logits, steps: 5}]",
        *more,
    ]


def process(module: str, arguments: list[str], cache: Path) -> subprocess.Popen:
    """A real process, on one CPU device, cheap to compile, with a compilation cache that the runs of a test share."""
    flags = [flag for flag in os.environ["XLA_FLAGS"].split() if "device_count" not in flag]
    environment = {
        **os.environ,
        "JAX_PLATFORMS": "cpu",
        "XLA_FLAGS": " ".join(flags),
        "JAX_COMPILATION_CACHE_DIR": str(cache),
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
    }
    command = [sys.executable, "-m", module, *arguments]
    return subprocess.Popen(
        command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, start_new_session=True
    )


def finish(running: subprocess.Popen, code: int = 0, seconds: float = 300) -> str:
    """What it printed; it must end with this exit code, in time."""
    output, _ = running.communicate(timeout=seconds)
    assert running.returncode == code, output
    return output


def wait_for(found, running: subprocess.Popen, seconds: float = 120) -> bool:
    """Waits until ``found()`` holds; False if the process ended before."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if found():
            return True
        if running.poll() is not None:
            return False
        time.sleep(0.01)
    raise AssertionError("nothing happened in time")


@contextlib.contextmanager
def stopped_after(name: str, results: type, monkeypatch):
    """The run inside fails when ``results``, a class, has measured the model called ``name``."""
    measure, reason = results.measure, f"stopped after {name}"

    def then_stop(self, measured, model):
        measure(self, measured, model)
        if measured == name:
            raise RuntimeError(reason)

    with monkeypatch.context() as patched, pytest.raises(RuntimeError, match=reason):
        patched.setattr(results, "measure", then_stop)
        yield


def checkpoint_steps(folder: Path) -> list[int]:
    """Complete checkpoints of a run."""
    root = folder / "checkpoints"
    return sorted(int(p.name) for p in root.iterdir() if p.name.isdigit()) if root.is_dir() else []


def contents(folder: Path) -> dict:
    """Everything in the newest checkpoint: bits of every array (parameters, optimizer, rng), the data position."""
    step = checkpoint_steps(folder)[-1]
    path = (folder / "checkpoints" / str(step)).absolute()
    metadata = ocp.checkpointables_metadata(path)
    device = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    targets = {
        name: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=device) for name, x in metadata.metadata["state"].items()
    }
    arrays = ocp.load_checkpointables(path, {"state": targets})["state"]
    bits = {name: (str(x.dtype), x.shape, np.asarray(x).tobytes()) for name, x in arrays.items()}
    return {**bits, "step": step, "position": metadata.custom_metadata["position"]}
