"""A whole distillation, tiny, in this process; and training on many devices."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import train.results
from effarch import cli
from effarch.cli import run as effarch
from effarch.config import load, main
from effarch.data.batches import Batches, DataPosition
from effarch.data.prepare import prepare
from effarch.distill.objectives import next_token
from effarch.eval.card import model_card
from effarch.experiment.config import PretrainConfig
from effarch.experiment.distill import DistillConfig
from effarch.models.lm import make_lm
from effarch.training.optimizer import make_optimizer
from effarch.training.state import make_state
from effarch.training.step import make_step
from tests.tolerances import TOL, assert_close
from tests.train import tiny
from train.distill import run as run_distill
from train.pretrain import run as run_pretrain

ROWS = [
    "teacher",
    "teacher, window 16 + 4 sinks",
    "student, converted",
    "student, after align",
    "student, after logits",
    "student, from scratch",
]


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    return tmp_path_factory.mktemp("distill")


@pytest.fixture(scope="module")
def files(root) -> str:
    return tiny.corpus(root / "corpus")


@pytest.fixture(autouse=True)
def short_contexts(monkeypatch):
    monkeypatch.setattr(train.results, "SAMPLE_TOKENS", 8)


def distill(root, files, *more: str) -> int:
    return main(DistillConfig, run_distill, argv=tiny.distill(root, files, *more), prog="python -m train.distill")


def test_a_distillation_from_end_to_end(root, files, capsys, monkeypatch):
    assert distill(root, files) == 0
    printed = capsys.readouterr().out
    assert all(name in printed for name in ROWS)
    folder = root / "runs" / "run"
    names = {
        "config.yaml",
        "metrics.jsonl",
        "report.html",
        "report.json",
        "sample.txt",
        "checkpoints",
        "scratch",
        "export",
    }
    assert names <= {path.name for path in folder.iterdir()}
    assert effarch(["convert", str(folder), str(root / "converted")]) == 0
    exported, converted = (
        {path.name: path.read_bytes() for path in where.iterdir()} for where in (folder / "export", root / "converted")
    )
    assert set(converted) == {"config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json"}
    assert all(exported[name] == x for name, x in converted.items())
    assert (root / "runs" / "teacher" / "config.yaml").exists()
    assert load(DistillConfig, folder / "config.yaml") == load(DistillConfig, None, tiny.distill(root, files))

    report = json.loads((folder / "report.json").read_text())
    models = {model["name"]: model for model in report["models"]}
    assert list(models) == ROWS
    for name, model in models.items():
        assert 0 < model["bits_per_byte"] < 20 and 0 <= model["recall_within"] <= 1
        assert (model["kl_bits"] < 1e-6) == (name == "teacher")
        assert set(model["decode_tokens_per_s"]) == {"96"}
        states = model["state_bytes"]
        assert (states["1024"] < states["16384"]) == (name == "teacher")
        assert (model["agreement"] == 1) == (name == "teacher") and 0 <= model["agreement"] <= 1
        assert list(model["perplexity"]) == ["64"] and model["perplexity"]["64"] > 1
        assert list(model["perplexity_by_position"]) == ["8", "16", "32", "64"]
        for task in ("needle", "mqar"):
            assert list(model[task]["64"]) == ["0", "1"] and 0 <= model[f"{task}_mean"] <= 1
        assert ("break_even" in model) == (name != "teacher") and model.get("break_even", 1) < 1000
    seen = {"teacher": 6, "student, converted": 0, "student, after align": 4, "student, after logits": 5}
    assert {name: models[name]["tokens"] for name in seen} == {name: 512 * steps for name, steps in seen.items()}
    assert models["student, from scratch"]["tokens"] == 512 * 9 and models["student, from scratch"]["seconds"] > 0
    assert "## Stages" in model_card(report) and report["student"] == "student, after logits"
    assert len(report["run"]["corpus digest"]) >= 16
    phases = [json.loads(line)["phase"] for line in (folder / "metrics.jsonl").read_text().splitlines()]
    assert phases == ["align"] * 4 + ["logits"] * 5
    assert (folder / "sample.txt").read_text().startswith("def ")
    assert tiny.contents(folder)["step"] == 9 == tiny.contents(folder / "scratch")["step"]

    # The verb scores as the run did.
    words = (
        "eval.rows=8",
        "eval.window=16",
        "eval.lengths=[64]",
        "eval.tokens=512",
        "eval.depths=[0,1]",
        "eval.trials=4",
    )
    assert cli.run(["evaluate", str(folder), *words, "eval.contexts=[]"]) == 0
    assert f"scores: {folder / 'evaluation.json'}" in capsys.readouterr().out
    (row,) = json.loads((folder / "evaluation.json").read_text())["models"]
    unlike = {"name", "reference", "tokens", "seconds", "decode_tokens_per_s"}
    for name, value in models["student, after logits"].items():
        assert name in unlike or row[name] == value, name

    # A second call measures and trains nothing.
    before = {path: path.stat().st_mtime_ns for path in folder.glob("checkpoints/*/*")}
    monkeypatch.setattr(train.results, "measured", lambda *_, **__: 1 / 0)
    assert distill(root, files) == 0
    assert {path: path.stat().st_mtime_ns for path in folder.glob("checkpoints/*/*")} == before
    assert json.loads((folder / "report.json").read_text())["models"] == report["models"]
    lines = (folder / "metrics.jsonl").read_text().splitlines()
    assert len(lines) == 9

    # Another config is refused, and nothing changes.
    capsys.readouterr()
    assert distill(root, files, "stages.1.steps=6") == 2
    error = capsys.readouterr().err
    assert "run: this run has another config; choose another run_name or the same config" in error
    assert "Traceback" not in error and len(error.splitlines()) <= 4
    assert {path: path.stat().st_mtime_ns for path in folder.glob("checkpoints/*/*")} == before


def test_select_layers_of_that_run(root, capsys):
    """A table, the override to use, and a file in the run's folder; also by the run's config."""
    folder = root / "runs" / "run"
    for run, method in ((folder, "single"), (folder / "config.yaml", "greedy")):
        assert cli.run(["select-layers", str(run), "keep=1", "rows=8", f"method={method}"]) == 0
        printed = capsys.readouterr().out
        found = json.loads((folder / "select_layers.json").read_text())
        assert found["method"] == method and len(found["layers"]) == 2 and found["keep"][0] in (0, 1)
        best = min(found["layers"], key=lambda row: row["kl_bits"])
        assert best["layer"] == found["keep"][0] and best["choice"] == 1 and best["mixer"] == "retnet"
        override = f"student.keep=[{best['layer']}]"
        assert printed.endswith(f"use: {override}\n") and "KL when restored" in printed
    assert load(DistillConfig, None, [override]).student.keep == (best["layer"],)
    for words, line in (
        ((str(folder), "keep=3"), "keep: expected 1 to 2 layers, got 3"),
        ((str(root / "runs" / "teacher"), "keep=1"), "expected the run of a distillation"),
        ((str(root / "none"), "keep=1"), "expected the folder of a run or its config"),
    ):
        assert cli.run(["select-layers", *words]) == 2
        assert line in capsys.readouterr().err


def losses(root, files, name: str, *mesh: str) -> list[float]:
    arguments = tiny.pretrain(root, files, f"run_name={name}", "steps=5", "optimizer.warmup_steps=2", *mesh)
    assert main(PretrainConfig, run_pretrain, argv=arguments, prog="python -m train.pretrain") == 0
    lines = (root / "runs" / name / "metrics.jsonl").read_text().splitlines()
    return [json.loads(line)["loss"] for line in lines]


@pytest.mark.slow
def test_eight_devices_are_one(root, files):
    """Data and parameters split in any way: the losses of a step without any sharding."""
    config = load(PretrainConfig, None, tiny.pretrain(root, files, "steps=5", "optimizer.warmup_steps=2"))
    tx, _ = make_optimizer(config.optimizer, config.steps)
    graph, params, rest = nnx.split(make_lm(config.model, config.seed), nnx.Param, ...)
    step = jax.jit(make_step(next_token(graph), tx))
    batches = Batches(prepare(config.data, config.seq_len, config.cache_dir).train, config.batch_size, config.seed)
    state, position, single = make_state(params, rest, tx, config.seed), DataPosition(), []
    for _ in range(config.steps):
        state, metrics = step(state, jax.tree.map(jnp.asarray, batches.batch_at(position)))
        position = batches.next_position(position)
        single.append(float(metrics["loss"]))
    assert len(set(np.round(single, 3))) == 5
    for mesh in (("mesh.data=8",), ("mesh.data=4", "mesh.fsdp=2"), ("mesh.data=1", "mesh.fsdp=8")):
        name = "-".join(word.replace("=", "").replace("mesh.", "") for word in mesh)
        assert_close(losses(root, files, name, *mesh), single, TOL.f32_forward)
