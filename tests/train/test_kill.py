"""Kill a real training process at any moment: the command repeated gives what an undisturbed run gives, to the bit."""

import random
import signal
import time
from pathlib import Path

import pytest

from tests.train import tiny


@pytest.fixture(scope="module")
def root(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("kill")


@pytest.fixture(scope="module")
def files(root) -> str:
    return tiny.corpus(root / "corpus")


def command(root: Path, files: str, name: str) -> list[str]:
    return tiny.pretrain(root, files, f"run_name={name}", "steps=30", "checkpoint.every=2")


@pytest.fixture(scope="module")
def whole(root, files) -> dict:
    """What an uninterrupted run of 30 steps leaves."""
    tiny.finish(tiny.process("train.pretrain", command(root, files, "whole"), root / "cache"))
    found = tiny.contents(root / "runs" / "whole")
    assert found["step"] == 30 and {"rng", "position", "skipped"} < set(found)
    assert any(name.startswith("params.") for name in found) and any(name.startswith("opt_state.") for name in found)
    return found


def test_kill_9_loses_nothing(root, files, whole):
    folder = root / "runs" / "killed"
    running = tiny.process("train.pretrain", command(root, files, "killed"), root / "cache")
    assert tiny.wait_for(lambda: tiny.checkpoint_steps(folder), running)
    time.sleep(0.3 * random.random())
    running.kill()
    running.communicate()
    reached = tiny.checkpoint_steps(folder)[-1]
    assert running.returncode == -signal.SIGKILL and reached < 30
    tiny.finish(tiny.process("train.pretrain", command(root, files, "killed"), root / "cache"))
    assert tiny.contents(folder) == whole
    lines = (folder / "metrics.jsonl").read_text().splitlines()
    assert len(lines) == 30


@pytest.mark.slow
def test_sigterm_saves_and_the_run_goes_on(root, files, whole):
    """Exit code 143; every step taken is in the checkpoint, also between two regular ones."""
    folder = root / "runs" / "stopped"
    arguments = [*command(root, files, "stopped")[:-1], "checkpoint.every=1000"]
    running = tiny.process("train.pretrain", arguments, root / "cache")
    metrics = folder / "metrics.jsonl"
    assert tiny.wait_for(lambda: metrics.exists() and metrics.read_text().count("\n") >= 3, running)
    running.terminate()
    output = tiny.finish(running, 143)
    assert "stopped and saved; repeat the command to continue (exit code 143)" in output
    (reached,) = tiny.checkpoint_steps(folder)
    assert 3 <= reached < 30 and metrics.read_text().count("\n") == reached
    assert "Traceback" not in output
    tiny.finish(tiny.process("train.pretrain", arguments, root / "cache"))
    assert tiny.contents(folder) == whole


STAGES = (
    "{type: orient, steps: 8}",
    "{type: align, steps: 8}",
    "{type: swap, steps: 8}",
    "{type: logits, steps: 8, trains: lora}",
    "{type: logits, steps: 8, cache: {top_k: 32, bits: 16}}",
    "{type: on_policy, steps: 8}",
    "{type: cross_entropy, steps: 8, seq_len: 96, batch_size: 4}",
)


@pytest.mark.slow
def test_kill_9_of_a_distillation_at_20_random_moments(root, files):
    """Teacher, scratch, a cache or any stage, whatever is hit: the same student to the bit."""
    more = ("checkpoint.every=2", "teacher.steps=20", f"stages=[{', '.join(STAGES)}]")

    def arguments(name: str) -> list[str]:
        cache, teacher = root / "caches" / name, root / "teachers" / name
        return tiny.distill(root, files, f"run_name={name}", f"teacher.path={teacher}", f"cache_dir={cache}", *more)

    def kept(name: str) -> tuple[dict, dict]:
        folder = root / "runs" / name
        return tiny.contents(folder), tiny.contents(folder / "scratch")

    tiny.finish(tiny.process("train.distill", arguments("whole"), root / "cache"), seconds=1200)
    begun = time.monotonic()  # now that everything is compiled
    tiny.finish(tiny.process("train.distill", arguments("again"), root / "cache"), seconds=1200)
    seconds, expected = time.monotonic() - begun, kept("whole")
    assert kept("again") == expected
    kills, names = 0, iter(f"killed-{n}" for n in range(20))
    while kills < 20:
        name = next(names)
        finished = False
        while not finished:
            running = tiny.process("train.distill", arguments(name), root / "cache")
            if kills < 20:
                time.sleep(random.uniform(0.1, 0.6) * seconds)
                finished = running.poll() is not None
                running.kill()
                running.communicate()
                kills += not finished
            else:
                tiny.finish(running, seconds=1200)
                finished = True
        assert kept(name) == expected, name
