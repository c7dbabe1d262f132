"""Recipes compared: means over seeds, what failed beside what did not; the command once, whole."""

import json

import pytest

from effarch.eval.recipes import recipes_table, rows_of
from tests.train import tiny
from train import recipes


def report(kl: float, beyond: float, *, scratch: bool = True) -> dict:
    models = [
        {"name": "teacher", "kl_bits": 0.0, "bits_per_byte": 2.0, "recall_beyond": 0.8},
        {"name": "teacher, window 16 + 4 sinks", "kl_bits": 0.5, "recall_beyond": 0.1},
        {"name": "student, converted", "kl_bits": 2.0, "recall_beyond": 0.0},
        {"name": "student, after align", "kl_bits": 0.9, "recall_beyond": 0.2, "tokens": 100, "seconds": 1.5},
        {"name": "student, after logits", "kl_bits": kl, "recall_beyond": beyond, "tokens": 300, "seconds": 2.5},
    ]
    return {"models": models + [{"name": "student, from scratch", "kl_bits": 1.0}] * scratch}


def test_rows_are_means_over_seeds():
    results = [
        {"recipe": "a", "student": "gla", "seed": 0, "report": report(0.2, 0.4)},
        {"recipe": "a", "student": "gla", "seed": 1, "report": report(0.4, 0.6)},
        {"recipe": "b", "student": "gla", "seed": 0, "failed": "no such teacher"},
    ]
    rows = {row["name"]: row for row in rows_of(results)}
    assert list(rows) == ["teacher", "teacher, window 16 + 4 sinks", "gla, from scratch", "gla, a", "gla, b"]
    found = rows["gla, a"]
    assert found["kl_bits"] == pytest.approx(0.3) and found["spread"] == pytest.approx(0.1) and found["seeds"] == 2
    assert found["closed"] == pytest.approx(0.85) and found["of_teacher"] == pytest.approx(0.625)
    assert found["tokens"] == 400 and found["seconds"] == pytest.approx(4.0)
    assert rows["gla, b"]["notes"] == "no such teacher" and rows["gla, b"]["seeds"] is None
    assert recipes_table(list(rows.values())).plain()


def test_a_mistake_in_one_recipe_is_named_with_it(tmp_path, capsys):
    (tmp_path / "r.yaml").write_text("steps: 3\n")
    words = [
        f"recipes=[{{name: a, config: '{tmp_path / 'r.yaml'}'}}, {{name: b, config: none.yaml}}]",
        "students=[{name: gla}]",
    ]
    assert recipes.main(recipes.RecipesConfig, recipes.run, argv=words, prog="python -m train.recipes") == 2
    said = capsys.readouterr().err
    assert "a-gla-0: steps: unknown key" in said and "b-gla-0" in said and "none.yaml" in said


@pytest.mark.slow
def test_the_command(tmp_path, capsys):
    files = tiny.corpus(tmp_path / "text")
    shared = [word for word in tiny.distill(tmp_path, files) if not word.startswith(("output_dir", "run_name"))]
    (tmp_path / "r.yaml").write_text("run_name: r\n")
    quoted = ", ".join(json.dumps(word) for word in shared)
    recipe = f"{{name: a, config: '{tmp_path / 'r.yaml'}', overrides: [{quoted}]}}"
    short = f"{{name: b, config: '{tmp_path / 'r.yaml'}', overrides: [{quoted}, 'stages.0.steps=1']}}"
    words = [f"recipes=[{recipe}, {short}]", "students=[{name: gla, overrides: [student.mixer.type=gla]}]"]
    words += [f"output_dir={tmp_path / 'runs'}"]
    for _ in range(2):  # the second time everything is there
        assert recipes.main(recipes.RecipesConfig, recipes.run, argv=words, prog="python -m train.recipes") == 0
    said = capsys.readouterr()
    assert said.err.count("1 of 2: a-gla-0") == said.err.count("measuring teacher\n") == 1 and "gla, b" in said.out
    found = json.loads((tmp_path / "runs" / "recipes" / "report.json").read_text())
    assert [row["name"] for row in found["rows"]][-3:] == ["gla, from scratch", "gla, a", "gla, b"]
