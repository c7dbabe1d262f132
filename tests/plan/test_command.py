"""``effarch plan`` as a user meets it: processes, tables, JSON, one line for a mistake."""

import json

import pytest

from effarch.bench import targets
from effarch.bench.topology import parse
from effarch.cli import run
from effarch.config import to_yaml
from effarch.config.yaml import read
from effarch.plan.config import PlanDistill, PlanPretrain, schema_of
from effarch.plan.run import places_of, unit_of
from tests.plan import tiny


@pytest.fixture
def file(tmp_path):
    path = tmp_path / "run.yaml"
    path.write_text(to_yaml(tiny.pretrain()))
    return str(path)


def test_the_schema_is_that_of_the_file(tmp_path, file):
    assert schema_of(file) is PlanPretrain and schema_of(None) is PlanPretrain
    path = tmp_path / "distill.yaml"
    path.write_text("stages: [logits]")
    assert schema_of(str(path)) is PlanDistill
    config = PlanPretrain(**read(to_yaml(tiny.pretrain())), target="V5E:4x4")
    assert config.target == "v5e:4x4" and config.planned_run() == tiny.pretrain()


def test_stages_and_units():
    config = tiny.distill("stages=[{type: align}, {type: logits}, {type: logits, batch_size: 16}]", "grad_accum=2")
    assert [place.name for place in places_of(config, "train", None)] == ["align", "logits", "logits 2"]
    assert [place.number for place in places_of(config, "train", "2")] == [2]
    (place,) = places_of(config, "train", "logits 2")
    assert place.batch_size == 16
    mesh = {"data": 2, "fsdp": 2, "tensor": 1, "context": 2}
    assert unit_of(config, "batch_size", place, mesh) == 8 and unit_of(config, "seq_len", place, mesh) == 2
    assert [place.name for place in places_of(config, "decode", None)] == ["decode"]


@pytest.mark.parametrize(
    ("words", "parts"),
    [
        ([], ["target: missing"]),
        (["target=v5ee:4x4"], ["target: expected one of", 'did you mean "v5e"?']),
        (["--target", "v5e:2x8"], ['did you mean "v5e:4x4"?']),
        (["target=cpu:4"], ["mesh: expected data * fsdp * tensor * context = 4 devices, got 8"]),
        (["target=cpu:8", "what=training"], ["what: expected one of", '"train"', 'got "training"']),
        (["target=cpu:8", "find=batch"], ["find: expected one of", '"batch_size"']),
        (["target=cpu:8", "stage=align"], ["stage: expected null but for a distillation"]),
        (["target=cpu:8", "model.dimm=3"], ["model.dimm: unknown key", 'did you mean "dim"?']),
        (["target=cpu:8", "json=no/such/plan.json"], ["json: expected a file in a folder that exists"]),
        (["target=cpu:8", "batch_size=12"], ["batch_size: expected a multiple of 8"]),
    ],
    ids=lambda x: " ".join(x) if x and x[0].count("=") else "",
)
def test_mistakes_are_one_line(words, parts, file, capsys):
    assert run(["plan", file, *words]) == 2
    out, err = capsys.readouterr()
    (line,) = err.splitlines()
    assert out == "" and line.startswith("error: ") and all(part in line for part in parts), line


def test_a_missing_file_or_extra_is_one_line(file, capsys, monkeypatch):
    assert run(["plan", "target=v5e"]) == 2 and "missing CONFIG.yaml" in capsys.readouterr().err
    assert run(["plan", "no/such.yaml", "target=v5e"]) == 2 and "no/such.yaml" in capsys.readouterr().err
    monkeypatch.setattr(targets, "_found", lambda module: False)
    for target, extra in (("v5e:2x4", "tpu"), ("h200:1x8", "cuda12")):
        assert run(["plan", file, f"target={target}"]) == 2
        assert f"pip install 'effarch[{extra}]'" in capsys.readouterr().err


def test_the_largest_that_fits_is_found(file, capsys, tmp_path):
    """On simulated devices, with the memory of very small ones."""
    words = ["target=cpu:8", "what=decode", "find=batch_size", "memory=4e-4", f"json={tmp_path / 'plan.json'}"]
    assert run(["plan", file, *words]) == 0
    out, err = capsys.readouterr()
    found = json.loads((tmp_path / "plan.json").read_text())
    (step,) = found["steps"]
    tried = dict(map(tuple, step["tried"]))
    assert step["largest"] % 8 == 0 and tried[step["largest"]] and not tried[step["largest"] + 8]
    assert step["needed"] <= found["memory"] == round(4e-4 * 2**30)
    assert f"the largest batch_size that fits is {step['largest']}" in out
    assert len(err.splitlines()) == len(tried) and "does not fit" in err


@pytest.mark.parametrize("target", ["v5e:2x2", "h100:4"])
def test_a_training_step_is_compiled_for_what_is_not_here(target, file, capsys, tmp_path, monkeypatch):
    if reason := parse(target).missing():
        pytest.skip(reason)
    monkeypatch.delenv("XLA_FLAGS", raising=False)
    path = tmp_path / "plan.json"
    assert run(["plan", file, f"target={target}", "mesh={data: 1, fsdp: 4}", f"json={path}"]) == 0
    out = capsys.readouterr().out
    found = json.loads(path.read_text())
    (step,) = found["steps"]
    assert found["fits"] and found["chips"] == 4 and found["mesh"]["fsdp"] == 4
    assert sum(step["held"].values()) <= step["needed"] < 2**28
    assert step["step_seconds"] == max(step["seconds"].values()) > 0
    assert step["source"] == "compiled" and step["flops"] > 0
    assert set(step["seconds"]) == {"compute", "memory", "network"} and step["bound"] in step["seconds"]
    assert step["tokens_per_s"] == pytest.approx(8 * 32 / step["step_seconds"])
    kinds = {row["kind"] for row in step["collectives"]}
    assert kinds & {"all-gather", "all-reduce", "reduce-scatter"}
    assert f"{target}: 4 x" in out and "at least" in out
