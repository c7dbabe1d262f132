"""A whole training of a classifier, tiny, in this process; and the experiment of ``configs/`` itself."""

import dataclasses
import itertools
import json
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

import train.loop
from effarch.config import load, main
from effarch.eval.scores import accuracy
from effarch.training.load import load_classifier, load_lm
from tests.train import tiny
from train.classify import ClassifyConfig, checked, classify, run
from train.loop import Stopped

pytest.importorskip("sklearn", reason="needs the extra `images`")

CONFIGS = Path(__file__).parents[2] / "configs"
STEPS = 60


def words(root: Path, name: str, *more: str) -> list[str]:
    mixer = "{mixer: {type: mlp_mixer, length: 16, hidden: 16}, channel: {type: gelu_mlp, hidden: 64}}"
    return [
        f"output_dir={root}",
        f"run_name={name}",
        f"steps={STEPS}",
        "batch_size=64",
        "model.input={type: patches, height: 8, width: 8, channels: 1, patch: 2}",
        "model.dim=32",
        "model.num_layers=2",
        f"model.pattern=[{mixer}]",
        "optimizer={learning_rate: 1.0e-2, warmup_steps: 4}",
        "log.every=1",
        "eval.every=20",
        *more,
    ]


def command(argv: list[str]) -> int:
    return main(ClassifyConfig, run, argv=argv, prog="python -m train.classify")


@pytest.fixture(scope="module")
def root(tmp_path_factory) -> Path:
    """Of a finished run, ``whole``."""
    root = tmp_path_factory.mktemp("classify")
    assert command(words(root, "whole")) == 0
    return root


def test_from_end_to_end(root, capsys):
    folder = root / "whole"
    assert {"config.yaml", "metrics.jsonl", "report.html", "report.json", "checkpoints"} <= {
        path.name for path in folder.iterdir()
    }
    config = load(ClassifyConfig, folder / "config.yaml")
    assert config == load(ClassifyConfig, None, words(root, "whole"))
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    steps = [line for line in lines if "validation_accuracy" not in line]
    scored = [line["validation_accuracy"] for line in lines if "validation_accuracy" in line]
    assert [line["step"] for line in lines] == list(range(1, STEPS + 1)) and len(scored) == STEPS // 20
    assert steps[0]["loss"] == pytest.approx(np.log(10), abs=1e-3)  # the head starts at zero
    assert lines[-1]["loss"] < 0.7 and lines[-1]["tokens"] == STEPS * 64 * 16

    report = json.loads((folder / "report.json").read_text())
    (model,) = report["models"]
    assert model["name"] == "mlp_mixer" and model["accuracy"] > 0.75
    assert model["validation_accuracy"] == scored[-1]
    assert report["run"]["images"] | {"digest": ""} == {
        "set": "digits", "digest": "", "train": 1295, "validation": 143, "test": 359
    }  # fmt: skip
    sets = checked(config)
    assert report["run"]["images"]["digest"] == sets.digest
    trained = load_classifier(folder)
    assert accuracy(trained, sets.test.in_order(64)) == model["accuracy"]
    with pytest.raises(ValueError, match="expected a checkpoint of a language model, its metadata names none"):
        load_lm(folder)

    # A second call trains nothing and says the same.
    before = {path: path.stat().st_mtime_ns for path in folder.glob("checkpoints/*/*")}
    assert command(words(root, "whole")) == 0
    assert f"{100 * model['accuracy']:.1f}" in capsys.readouterr().out
    assert {path: path.stat().st_mtime_ns for path in folder.glob("checkpoints/*/*")} == before
    assert json.loads((folder / "report.json").read_text())["models"] == report["models"]
    assert len((folder / "metrics.jsonl").read_text().splitlines()) == STEPS


@pytest.mark.slow
def test_a_run_that_was_stopped_goes_on_and_never_sees_the_test_set(root, monkeypatch):
    """To the bit what an undisturbed run gives; ``test`` is not even there. Its time goes on, too."""
    ticks = itertools.count()
    monkeypatch.setattr(train.loop, "time", SimpleNamespace(perf_counter=lambda: next(ticks)))
    config = load(ClassifyConfig, None, words(root, "stopped"))
    sets = dataclasses.replace(checked(config), test=None)

    class After17:
        exit_code, polls = 143, 0

        @property
        def requested(self) -> bool:
            self.polls += 1
            return self.polls > 2 * 17

    with pytest.raises(Stopped):
        classify(config, sets, After17())
    (reached,) = tiny.checkpoint_steps(root / "stopped")
    assert 0 < reached < STEPS
    classify(config, sets, SimpleNamespace(requested=False))
    assert tiny.contents(root / "stopped") == tiny.contents(root / "whole")
    metrics = [(root / name / "metrics.jsonl").read_text().splitlines() for name in ("stopped", "whole")]
    seconds = [json.loads(line)["seconds"] for line in metrics[0]]
    assert seconds == sorted(set(seconds))
    losses = [[json.loads(line)["loss"] for line in lines] for lines in metrics]
    assert losses[0] == losses[1]


def test_mistakes_are_one_line(root, capsys):
    for more, message in (
        (["model.classes=9"], "error: model.classes: expected at least 10, got 9"),
        (
            ["model.input={type: patches, height: 8, width: 8, channels: 3, patch: 2}"],
            "error: images: expected [B, height, width, 3] with sides that 2 divides, got [1, 8, 8, 1]",
        ),
    ):
        assert command(words(root, "wrong", *more)) == 2
        assert capsys.readouterr().err.splitlines() == [message]
    assert not (root / "wrong").exists()


@pytest.mark.slow
@pytest.mark.parametrize("name", ["digits_mixer", "digits_bidirectional"])
def test_the_experiments_reach_what_their_headers_say(tmp_path, name):
    arguments = [str(CONFIGS / f"{name}.yaml"), f"output_dir={tmp_path}"]
    tiny.finish(tiny.process("train.classify", arguments, tmp_path / "cache"))
    (model,) = json.loads((tmp_path / name / "report.json").read_text())["models"]
    assert model["accuracy"] >= 0.97
