"""Real processes that train one model: as one process would, whatever is killed, with any number of them."""

import json
import time
from pathlib import Path

import numpy as np
import pytest

from tests.train import processes, tiny

HEARTBEAT = 10  # seconds; nothing shorter is safe on a machine that is busy


@pytest.fixture(scope="module")
def root(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("processes")


@pytest.fixture(scope="module")
def files(root) -> str:
    return tiny.corpus(root / "corpus")


def losses(folder: Path) -> list[tuple[str, int, float]]:
    """Phase, step and loss of every line of a run's log."""
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [(line["phase"], line["step"], line["loss"]) for line in lines]


def assert_same(folder: Path, expected: list[tuple[str, int, float]]) -> None:
    found = losses(folder)
    assert [line[:2] for line in found] == [line[:2] for line in expected]
    np.testing.assert_allclose([line[2] for line in found], [line[2] for line in expected], rtol=2e-5)


def pretraining(root: Path, files: str, name: str, *more: str) -> list[str]:
    return tiny.pretrain(root, files, f"run_name={name}", "steps=12", "checkpoint.every=2", *more)


@pytest.fixture(scope="module")
def alone(root, files) -> list[tuple[str, int, float]]:
    """What one process logs in 12 steps."""
    tiny.finish(tiny.process("train.pretrain", pretraining(root, files, "alone"), root / "cache" / "alone"))
    return losses(root / "runs" / "alone")


def test_two_processes_train_as_one(root, files, alone):
    """The parameters split over both; one writes, and says so once."""
    arguments = pretraining(root, files, "two", "mesh.data=1", "mesh.fsdp=2", "eval.every=6")
    first, second = processes.finish(processes.start("train.pretrain", arguments, root / "cache", 2))
    assert "bits per byte" in first and "bits per byte" not in second and "train:" not in second
    found = root / "runs" / "two"
    assert (found / "export" / "model.safetensors").is_file() or (found / "model.safetensors").is_file()
    assert_same(found, alone)


@pytest.mark.slow
@pytest.mark.parametrize("mesh", [("data=4",), ("data=2", "tensor=2"), ("data=1", "fsdp=2", "context=2")], ids=str)
def test_four_processes_train_as_one(root, files, alone, mesh):
    """Also where processes hold the same rows, and parts of their heads or of their tokens."""
    name = "four-" + "-".join(mesh).replace("=", "")
    model = "{mixer: {type: retnet, num_heads: 2}, channel: {type: swiglu, hidden: 32}}"
    pattern = () if mesh == ("data=4",) else (f"model.pattern=[{model}]",)  # attention's one key head does not split
    arguments = pretraining(root, files, name, *(f"mesh.{axis}" for axis in mesh), *pattern)
    processes.finish(processes.start("train.pretrain", arguments, root / "cache", 4))
    if pattern:
        once = pretraining(root, files, f"once-{name}", *pattern)
        tiny.finish(tiny.process("train.pretrain", once, root / "cache" / "alone"))
        alone = losses(root / "runs" / f"once-{name}")
    assert_same(root / "runs" / name, alone)


def distilling(root: Path, files: str, name: str, *more: str) -> list[str]:
    return tiny.distill(root / name, files, "run_name=distilled", "checkpoint.every=3", *more)


@pytest.fixture(scope="module")
def distilled_alone(root, files) -> Path:
    """The run's folder of one process."""
    tiny.finish(tiny.process("train.distill", distilling(root, files, "one"), root / "cache" / "alone"))
    return root / "one" / "runs" / "distilled"


@pytest.mark.slow
@pytest.mark.parametrize(("count", "data"), [(2, 1), (4, 2)])
def test_processes_distill_as_one(root, files, distilled_alone, count, data):
    """The parameters of teacher and student split over pairs; every stage's losses, and what the report says."""
    arguments = distilling(root, files, f"several-{count}", f"mesh.data={data}", "mesh.fsdp=2")
    processes.finish(processes.start("train.distill", arguments, root / "cache", count))
    folders = [distilled_alone, root / f"several-{count}" / "runs" / "distilled"]
    assert_same(folders[1], losses(folders[0]))
    one, several = (json.loads((folder / "report.json").read_text()) for folder in folders)
    assert [model["name"] for model in several["models"]] == [model["name"] for model in one["models"]]
    for mine, theirs in zip(several["models"], one["models"], strict=True):
        assert mine["bits_per_byte"] == pytest.approx(theirs["bits_per_byte"], rel=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize("killed", [0, 1])
def test_the_others_end_and_the_run_goes_on_with_one_process(root, files, alone, killed):
    """kill -9 of any of them: the other says what happened and ends; one process goes on, same rows, same losses."""
    name = f"killed-{killed}"
    arguments = pretraining(root, files, name)
    folder = root / "runs" / name
    running = processes.start("train.pretrain", arguments, root / "cache", 2, f"processes.heartbeat={HEARTBEAT}")
    assert tiny.wait_for(lambda: tiny.checkpoint_steps(folder), running[0], seconds=300)
    running[killed].kill()
    running[killed].communicate()
    begun = time.monotonic()
    output, _ = running[1 - killed].communicate(timeout=HEARTBEAT + 30)
    assert running[1 - killed].returncode not in (0, None) and time.monotonic() - begun < HEARTBEAT + 30
    assert "another process of this run is gone" in output or "another task died" in output, output
    assert tiny.checkpoint_steps(folder)[-1] < 12
    tiny.finish(tiny.process("train.pretrain", arguments, root / "cache" / "alone"))
    assert_same(folder, alone)


@pytest.mark.slow
def test_a_signal_to_one_of_them_saves_and_stops_both(root, files, alone):
    arguments = pretraining(root, files, "stopped", "checkpoint.every=1000")
    folder = root / "runs" / "stopped"
    running = processes.start("train.pretrain", arguments, root / "cache", 2)
    assert tiny.wait_for(lambda: (folder / "metrics.jsonl").exists() and losses(folder), running[0], seconds=300)
    running[1].terminate()
    first, second = processes.finish(running, 143)
    assert "stopped and saved" in first and "stopped and saved" not in second
    processes.finish(processes.start("train.pretrain", arguments, root / "cache", 2))
    assert_same(folder, alone)


def test_a_mistake_is_said_by_each_and_leaves_nothing(root, files):
    """Exit code 2, no traceback, although only the first looked."""
    arguments = pretraining(root, files, "bad", "data.recall.eval_rows=8", "batch_size=4000")
    for output in processes.finish(processes.start("train.pretrain", arguments, root / "cache", 2), 2):
        assert "batch_size=4000 rows to train on" in output and "Traceback" not in output
