"""What a sweep found, from records to the table and its page."""

import json

import pytest

from effarch.eval.sweep import models_of, sweep_table, write_sweep

TASKS = {"held out": 48, "length=256": 256}


def record(name: str, rate: float, held_out=None, longer=None, **more) -> dict:
    def score(accuracy):
        return accuracy if isinstance(accuracy, str) else {"accuracy": accuracy, "nats": 1 - accuracy}

    scores = {"held out": score(held_out), "length=256": score(longer)} if held_out is not None else {}
    measured = {"parameters": 1000, "state_bytes": {"48": 512, "256": 2048}, "skipped": 0} if scores else {}
    common = {"name": name, "transition": "delta", "learning_rate": rate, "seconds": 2.0, "scores": scores}
    return common | measured | more


RECORDS = [
    record("b", 0.01, 0.75, 0.5),
    record("b", 0.003, 0.5, 1.0),  # held-out rows choose, not this
    record("a", 0.003, 0.25, "length: expected rows of 48 tokens"),
    record("a", 0.01, failed="diverged"),
    record("c", 0.003, failed="broken"),
    record("c", 0.01, failed="broken"),
]


def test_held_out_rows_choose_the_rate():
    b, a, c = models_of(RECORDS, TASKS)
    assert [m["name"] for m in (b, a, c)] == ["b", "a", "c"]
    assert (b["learning_rate"], a["learning_rate"], c["learning_rate"]) == ("0.01", "0.003", None)
    assert b["learning_rates"]["0.003"] == {"held out": 0.5, "length=256": 1.0}
    assert b["seconds"] == 4.0 and b["notes"] == []
    assert a["notes"] == ["length=256: length: expected rows of 48 tokens (at 0.003)", "diverged (at 0.01)"]
    assert c["notes"] == ["broken"] and c["parameters"] is None and c["state_bytes"] == {}


def test_equal_accuracies_are_told_apart_by_nats():
    better = {"held out": {"accuracy": 1.0, "nats": 0.1}}
    worse = {"held out": {"accuracy": 1.0, "nats": 0.2}}
    found = [record("a", rate) | {"scores": s} for rate, s in [(0.1, worse), (0.2, better), (0.3, worse)]]
    assert models_of(found, {"held out": 48})[0]["learning_rate"] == "0.2"


def test_skipped_steps_are_said():
    (model,) = models_of([record("a", 0.1, 0.5, 0.5, skipped=3), record("a", 0.2, 0.4, 0.5)], TASKS)
    assert model["notes"] == ["3 steps not finite (at 0.1)"]


def test_table_has_every_rate_and_of_the_best_every_measurement():
    lines = [
        [cell.strip() for cell in line.split("|")[1:-1]]
        for line in sweep_table(models_of(RECORDS, TASKS), TASKS).markdown().splitlines()
    ]
    header = [cell.split(" (%)")[0].split(", %")[0] for cell in lines[0]]
    rows = {line[0]: dict(zip(header, line, strict=True)) for line in lines[2:]}
    assert [name.removesuffix("↑").strip() for name in header[:4]] == [
        "Mixer", "held out, lr 0.003", "held out, lr 0.01", "Best lr"
    ]  # fmt: skip
    assert list(rows["b"].values())[1:6] == ["50.0", "75.0", "0.01", "**75.0**", "50.0"]
    assert list(rows["b"].values())[6:8] == ["512 B", "2 KiB"]
    assert list(rows["a"].values())[1:6] == ["25.0", "-", "0.003", "25.0", "-"]
    assert list(rows["c"].values())[1:6] == ["-"] * 5 and rows["c"]["Notes"] == "broken"


@pytest.mark.parametrize("records", [RECORDS, RECORDS[-2:]], ids=["some", "all failed"])
def test_files_hold_what_was_given(tmp_path, records):
    models = models_of(records, TASKS)
    page = write_sweep(tmp_path, {"title": "x <b> y", "tasks": TASKS, "models": models, "run": {"seed": 3}})
    assert page == tmp_path / "report.html"
    text = page.read_text()
    assert "x &lt;b&gt; y" in text and "<b>" not in text
    assert text.count("<svg") == (2 if len(records) > 2 else 0)
    found = json.loads((tmp_path / "report.json").read_text())
    assert [m["name"] for m in found["models"]] == [m["name"] for m in models]
    markdown = (tmp_path / "report.md").read_text()
    assert "seed: 3" in markdown and "broken" in markdown
