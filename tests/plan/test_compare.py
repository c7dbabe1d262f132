"""Several runs on several targets: one table, no plan twice."""

import json

import pytest

from effarch.cli import run as effarch
from effarch.config import UserError, load, to_yaml
from effarch.plan.compare import CompareConfig
from tests.plan import tiny


def written(folder, *targets: str) -> str:
    """A comparison of a tiny run on these targets."""
    (folder / "run.yaml").write_text(to_yaml(tiny.pretrain("mesh={data: 2, fsdp: 1}")))
    runs = f"runs: [{{name: tiny, config: {folder / 'run.yaml'}}}]"
    path = folder / "plans.yaml"
    path.write_text(f"output: {folder / 'out'}\n{runs}\ntargets: [{', '.join(targets)}]\n")
    return str(path)


def test_a_table_that_grows(tmp_path, capfd):
    path = written(tmp_path, "{target: 'cpu:2'}")
    assert effarch(["plan", "compare", path]) == 0
    first = capfd.readouterr()
    assert "1 of 1: tiny on cpu:2" in first.err and "cpu:2" in first.out
    path = written(tmp_path, "{target: 'cpu:2'}", "{target: 'cpu:2', overrides: [seq_len=64]}")
    assert effarch(["plan", "compare", path]) == 0
    second = capfd.readouterr()
    assert "1 of 2" not in second.err and "2 of 2: tiny on cpu:2" in second.err
    plans = json.loads((tmp_path / "out" / "plans.json").read_text())
    steps = [entry["plan"]["steps"][0] for entry in plans]
    assert [step["seq_len"] for step in steps][1] == 64 and all(step["fits"] for step in steps)
    assert (tmp_path / "out" / "plans.md").read_text().count("| tiny |") == 2


def test_mistakes_are_told_before_anything_is_compiled(tmp_path):
    path = written(tmp_path, "{target: 'cpu:2', overrides: [seq_length=64]}", "{target: 'v5e:3x3'}")
    with pytest.raises(UserError) as error:
        load(CompareConfig, path).plans()
    assert any("tiny, cpu:2: seq_length" in line for line in error.value.lines)
    assert any("tiny, v5e:3x3: target: expected a slice of v5e" in line for line in error.value.lines)
