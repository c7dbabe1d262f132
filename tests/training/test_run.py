import os
import subprocess
import sys

import pytest

from effarch.config import Config, UserError
from effarch.training.checkpoint import CheckpointConfig
from effarch.training.metrics import LogConfig
from effarch.training.run import open_run, versions, write_atomic


class Inner(Config):
    depth: int = 2
    rate: float = 1e-5


class Settings(Config):
    run_name: str = "a"
    steps: int = 10
    names: tuple[str, ...] = ("x", "y")
    inner: Inner = Inner()
    nothing: int | None = None


class Watched(Settings):
    cache_dir: str = "here"
    checkpoint: CheckpointConfig = CheckpointConfig()
    log: LogConfig = LogConfig()


def test_new_then_resumed(tmp_path):
    with open_run(tmp_path / "runs", "a", Settings()) as run:
        assert not run.resume and run.folder == tmp_path / "runs" / "a"
        assert sorted(os.listdir(run.folder)) == ["config.yaml"]
        assert "steps: 10" in (run.folder / "config.yaml").read_text()
    with open_run(tmp_path / "runs", "a", Settings()) as run:
        assert run.resume
    (tmp_path / "runs" / "a").rename(tmp_path / "runs" / "b")
    with open_run(tmp_path / "runs", "b", Settings(run_name="b")) as run:
        assert run.resume


def test_another_config_is_refused(tmp_path):
    open_run(tmp_path, "a", Settings()).close()
    before = (tmp_path / "a" / "config.yaml").read_text()
    with pytest.raises(UserError) as caught:
        open_run(tmp_path, "a", Settings(steps=11, inner=Inner(depth=3)))
    assert caught.value.lines == (
        f"{tmp_path / 'a'}: this run has another config; choose another run_name or the same config",
        "steps: the run has 10, got 11",
        "inner.depth: the run has 2, got 3",
    )
    assert (tmp_path / "a" / "config.yaml").read_text() == before
    open_run(tmp_path, "a", Settings()).close()  # the lock is free again


def test_how_a_run_is_saved_and_watched_may_change(tmp_path):
    config = Watched()
    open_run(tmp_path, "a", config).close()
    other = config.replace(cache_dir="there", checkpoint=CheckpointConfig(every=7), log=LogConfig(every=3))
    with open_run(tmp_path, "a", other) as run:
        assert run.resume
    with pytest.raises(UserError, match="another config"):
        open_run(tmp_path, "a", other.replace(steps=11))


def test_a_run_is_not_continued_against_the_users_will(tmp_path):
    open_run(tmp_path, "a", Settings(), resume=False).close()
    with pytest.raises(UserError, match=r"expected no run here \(checkpoint.resume=false\); choose another"):
        open_run(tmp_path, "a", Settings(), resume=False)


@pytest.mark.parametrize("text", ["a: [", "\udcff", "just words"])
def test_damaged_config_is_one_line(tmp_path, text):
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "config.yaml").write_bytes(text.encode("utf-8", "surrogateescape"))
    with pytest.raises(UserError, match="config.yaml|another config") as caught:
        open_run(tmp_path, "a", Settings())
    assert all("\n" not in line for line in caught.value.lines)


def test_foreign_folder(tmp_path):
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "thesis.tex").touch()
    with pytest.raises(
        UserError, match=r"expected an empty folder or a run's \(with config.yaml\), found 'thesis.tex'"
    ):
        open_run(tmp_path, "a", Settings())
    assert os.listdir(tmp_path / "a") == ["thesis.tex"]
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match="file: expected a folder that can be written, got File exists"):
        open_run(tmp_path, "file", Settings())
    with pytest.raises(UserError, match="expected a folder that can be written, got Not a directory"):
        open_run(tmp_path / "file", "a", Settings())


@pytest.mark.parametrize("name", ["", "..", "a/b"])
def test_run_name(tmp_path, name):
    with pytest.raises(UserError, match="run_name: expected the name of a folder"):
        open_run(tmp_path, name, Settings())


def test_unwritable_folder(tmp_path, monkeypatch):
    def refuse(*_, **__):
        raise PermissionError(13, "Permission denied")

    (tmp_path / "a").mkdir()
    monkeypatch.setattr("tempfile.mkstemp", refuse)  # chmod stops no root
    with pytest.raises(UserError, match="a: expected a folder that can be written, got Permission denied"):
        open_run(tmp_path, "a", Settings())
    assert not list((tmp_path / "a").iterdir())


def test_two_processes_and_a_killed_one(tmp_path):
    code = (
        "import sys, time\nfrom tests.training.test_run import Settings, open_run\n"
        "run = open_run(sys.argv[1], 'a', Settings())\nprint('open', flush=True)\ntime.sleep(60)\n"
    )
    other = subprocess.Popen([sys.executable, "-c", code, str(tmp_path)], stdout=subprocess.PIPE, text=True)
    assert other.stdout.readline() == "open\n"
    with pytest.raises(UserError, match="another process is writing to this run"):
        open_run(tmp_path, "a", Settings())
    other.kill()
    other.communicate()
    with open_run(tmp_path, "a", Settings()) as run:
        assert run.resume


def test_write_is_atomic(tmp_path, monkeypatch):
    write_atomic(tmp_path / "f", "old")

    def fail(_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", fail)
    with pytest.raises(OSError, match="No space"):
        write_atomic(tmp_path / "f", "new")
    assert os.listdir(tmp_path) == ["f"] and (tmp_path / "f").read_text() == "old"


def test_versions():
    found = versions()
    assert {"python", "jax", "flax", "optax", "orbax-checkpoint", "effarch", "platform", "devices"} <= set(found)
    assert all(isinstance(x, str) for x in found.values())
