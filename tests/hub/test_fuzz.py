"""Damaged checkpoints: one line that says why, or exactly what the safetensors library reads; never a crash or a hang.

Mutations know the format: lengths, dtypes, shapes and offsets of a header, names and files of an index, fields of a
config. What is opened meanwhile is watched: nothing outside of the folder and of installed code.
"""

import json
import random
import shutil
import sys
import sysconfig
import time
from pathlib import Path

import jax
import numpy as np
import pytest

from effarch.config import UserError
from effarch.hub import load_lm
from effarch.hub.families import llama
from effarch.hub.folder import INDEX, SINGLE
from effarch.hub.parameters import written
from effarch.hub.write import names_of, write_checkpoint
from effarch.models.lm import make_lm
from tests.hub.test_roundtrip import tiny

safetensors = pytest.importorskip("safetensors.numpy", reason="needs the extra `hub`")
ODD = [
    None,
    True,
    -1,
    0,
    3,
    2**31,
    2**63,
    1e308,
    -0.5,
    float("nan"),
    "",
    "x",
    "../x",
    [],
    [1],
    {},
    {"a": 1},
    "F16",
    "F4",
]
CODE = tuple(sysconfig.get_paths()[name] for name in ("stdlib", "purelib", "platlib")) + (
    "/proc",
    "/dev",
    "/sys",
    "/etc",
)

opened: list[str] | None = None


def _watch(event: str, arguments: tuple) -> None:
    if event == "open" and opened is not None and isinstance(arguments[0], str | bytes | Path):
        opened.append(str(Path(str(arguments[0])).absolute()))


sys.addaudithook(_watch)


@pytest.fixture(scope="module")
def originals(tmp_path_factory):
    """One checkpoint in one file, one in shards."""
    lm = jax.jit(lambda: make_lm(tiny(num_layers=2), 1))()
    rules, config, root = llama.rules(lm.config, names_of(lm)), llama.export(lm.config), tmp_path_factory.mktemp("fuzz")
    return [
        write_checkpoint(root / name, config, written(lm, rules), shard_bytes=size)
        for name, size in (("single", 10**9), ("sharded", 4000))
    ]


def _outside(folder: Path) -> list[str]:
    """Ways to name a whole file of tensors that lies beside the folder."""
    beside = folder.parent / "beside.safetensors"
    return ["../beside.safetensors", str(beside), f"./../{beside.name}", f"..\\{beside.name}", f"{beside.name}/"]


def _spoil(rng: random.Random, data, depth: int = 0):
    """JSON with one thing in it changed."""
    keys = list(data) if isinstance(data, dict) else list(range(len(data))) if isinstance(data, list) else []
    if not keys or (depth and rng.random() < 0.2):
        if isinstance(data, int) and not isinstance(data, bool) and rng.random() < 0.7:
            return data + rng.choice([-8, -1, 1, 4, 8, 2**20, 2**40])
        return rng.choice(ODD)
    key = rng.choice(keys)
    choice = rng.random()
    if isinstance(data, dict) and choice < 0.1:
        del data[key]
    elif isinstance(data, dict) and choice < 0.2:
        data[rng.choice(["../" + str(key), str(key) + ".x", "a", ""])] = data.pop(key)
    elif isinstance(data, dict) and choice < 0.3:
        data[key] = data[rng.choice(keys)]
    else:
        data[key] = _spoil(rng, data[key], depth + 1)
    return data


def _spoil_json(rng: random.Random, path: Path) -> None:
    text = path.read_text()
    if rng.random() < 0.15:
        at = rng.randrange(len(text))
        path.write_text(text[:at] + rng.choice(["", "}", "{" * 100_000, "[" * 3000, '"', "\x00", "é"]) + text[at + 1 :])
    else:
        path.write_text(json.dumps(_spoil(rng, json.loads(text))))


def _spoil_tensors(rng: random.Random, path: Path) -> None:
    raw = path.read_bytes()
    length = int.from_bytes(raw[:8], "little")
    kind = rng.random()
    if kind < 0.6:  # the header
        header = json.dumps(_spoil(rng, json.loads(raw[8 : 8 + length]))).encode()
        if rng.random() < 0.2:
            header = header.replace(b'"', b"'", 1)
        raw = len(header).to_bytes(8, "little") + header + raw[8 + length :]
    elif kind < 0.7:  # its length
        raw = rng.choice([0, 1, length - 1, length + 1, 2**32, 2**64 - 1]).to_bytes(8, "little") + raw[8:]
    elif kind < 0.85:  # the end
        raw = raw[: rng.randrange(len(raw))] if rng.random() < 0.7 else raw + b"\0" * rng.randrange(1, 9)
    else:  # another file
        raw = rng.choice([b"", b"version https://git-lfs.github.com/spec/v1\n", b"PK\x03\x04rest", b"\x80\x02}q\0."])
    path.write_bytes(raw)


def _case(rng: random.Random, original: Path, folder: Path) -> None:
    shutil.copytree(original, folder)
    files = sorted(path for path in folder.iterdir())
    path = rng.choice(files)
    if rng.random() < 0.04:
        path.unlink()
    elif path.name == INDEX and rng.random() < 0.3:
        index = json.loads(path.read_text())
        for name in rng.sample(list(index["weight_map"]), rng.choice([1, 2, len(index["weight_map"])])):
            index["weight_map"][name] = rng.choice(_outside(folder))
        path.write_text(json.dumps(index))
    elif path.suffix == ".json":
        _spoil_json(rng, path)
    else:
        _spoil_tensors(rng, path)


def _reference(folder: Path) -> dict[str, np.ndarray]:
    found = {}
    for path in sorted(folder.glob("*.safetensors")):
        found |= safetensors.load_file(path)
    return found


def _try(folder: Path) -> str:
    """ "refused", or "read" where what was read is what the reference reads."""
    global opened
    opened, start = [], time.perf_counter()
    try:
        lm = load_lm(folder)
    except UserError as error:
        assert 1 <= len(error.lines) <= 6 and all(line and "\n" not in line for line in error.lines)
        return "refused"
    finally:
        seen, opened = opened, None
        outside = [p for p in seen if not p.startswith((str(folder), *CODE))]
        assert not outside, outside
        assert time.perf_counter() - start < 20
    expected = _reference(folder)
    for name, value in written(lm, llama.rules(lm.config, names_of(lm))):
        np.testing.assert_array_equal(value, expected[name])
    return "read"


def _run(originals, folder: Path, seeds: range) -> dict[str, int]:
    told = {"refused": 0, "read": 0}
    shutil.copy(originals[0] / SINGLE, folder / "beside.safetensors")
    for seed in seeds:
        rng = random.Random(seed)
        case = folder / str(seed)
        _case(rng, rng.choice(originals), case)
        try:
            told[_try(case)] += 1
        except Exception as error:
            raise AssertionError(f"seed {seed}") from error
        shutil.rmtree(case)
    return told


def test_500_damaged_checkpoints(originals, tmp_path):
    told = _run(originals, tmp_path, range(500))
    assert told["refused"] > 350 and told["read"] > 10


@pytest.mark.parametrize("value", [0, -1, 10**4, 10**9, 2**31, 2**62, 10**30])
def test_sizes_that_no_tensor_has_cost_nothing(value, originals, tmp_path):
    config = json.loads((originals[0] / "config.json").read_text())
    for key, size in config.items():
        if type(size) is int:
            folder = shutil.copytree(originals[0], tmp_path / key)
            (folder / "config.json").write_text(json.dumps(config | {key: value}))
            assert _try(folder) == "refused", key


@pytest.mark.slow
def test_10_000_damaged_checkpoints(originals, tmp_path):
    told = _run(originals, tmp_path, range(500, 10_500))
    assert told["refused"] > 7000
