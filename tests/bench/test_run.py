"""``effarch bench`` in processes of their own: rows, limits, resuming, and mistakes."""

import json
import os
import signal
import subprocess
import sys
import time

import pytest

from effarch.bench import run as running
from effarch.bench.config import BenchConfig
from effarch.bench.records import Records
from effarch.cli import run
from effarch.config import UserError

QUICK = ["ops=[constant]", "heads=1", "head_dim=8", "repeats=2", "baselines=false", "peers=false"]
MACHINE = {"processor": "p", "cores": 1, "date": "2026-01-01", "command": "effarch bench"}


@pytest.fixture(autouse=True)
def as_users_run_it(monkeypatch):
    """Workers compile as they do for users, not with the flags of the tests."""
    monkeypatch.setenv("XLA_FLAGS", "")


def test_the_command_measures_and_a_second_run_measures_only_what_is_new(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert run(["bench", *QUICK, "lengths=[64,128]"]) == 0
    first = capsys.readouterr().out
    assert "op constant, training, T = 128" in first and "Ops, forward and backward" in first
    folder = tmp_path / "runs" / "bench"
    report = json.loads((folder / "report.json").read_text())
    rows = report["rows"]
    assert [row["subject"]["length"] for row in rows] == [64, 128]
    for row in rows:
        assert len(row["seconds"]) == 2 and min(row["seconds"]) > 0 and row["compile_seconds"] > 0
        assert row["temporary_bytes"] > 0 and row["flops"] > 0 and row["resident_bytes"] is not None
    assert report["machine"]["jax"] and report["ceilings"]["matmul"] > 0
    asked = []
    monkeypatch.setattr(running, "ask", lambda request, **_: asked.append(request) or {"reason": "asked"})
    lines = (folder / "rows.jsonl").read_text()
    (folder / "rows.jsonl").write_text(lines + '{"key": "half a l')  # the power went
    assert run(["bench", *QUICK, "lengths=[64,128,256]"]) == 0
    assert [request["subject"]["length"] for request in asked if "subject" in request] == [256]
    assert "T = 256: asked" in capsys.readouterr().out


def rows_of(monkeypatch, answers, lengths, folder, **limits):
    """Rows of one op where workers answer as told, by length."""
    monkeypatch.setattr(running, "ask", lambda request, **_: answers[request["subject"]["length"]])
    subjects = BenchConfig(ops=("constant",), lengths=lengths, baselines=False, peers=False).subjects()
    with Records(folder, MACHINE) as records:
        limits = {"repeats": 1, "time_limit": 10.0, "memory_limit": None, **limits}
        return running.measure_all(subjects, records, done=lambda *_: None, **limits)


def test_what_would_take_too_long_is_not_begun(monkeypatch, tmp_path):
    answers = {t: {"seconds": [(t / 1000) ** 2], "compile_seconds": 1.0} for t in (1000, 2000, 4000, 8000)}
    rows = rows_of(monkeypatch, answers, (1000, 2000, 4000, 8000), tmp_path)
    assert [bool(row.get("seconds")) for row in rows] == [True, True, False, False]
    assert rows[2]["reason"] == rows[3]["reason"] == "not begun: would take about 16 s"
    assert len((tmp_path / "rows.jsonl").read_text().splitlines()) == 2  # with more time it may run another day


def test_after_one_that_does_not_fit_longer_ones_are_not_begun(monkeypatch, tmp_path):
    answers = {1000: {"reason": "needs 9 bytes, more than the 8 there are", "compile_seconds": 1.0}}
    rows = rows_of(monkeypatch, answers, (1000, 2000), tmp_path)
    assert rows[1]["reason"] == "not begun: needs 9 bytes, more than the 8 there are at T = 1000"


def test_a_worker_that_dies_is_a_row_with_its_reason(monkeypatch):
    monkeypatch.setattr(running.sys, "executable", "/bin/false")
    assert "reason" in running.ask({"ceilings": "float32"})
    monkeypatch.undo()
    assert running.ask({"subject": {"name": "nothing"}, "repeats": 1, "time_limit": 1.0, "memory_limit": None})[
        "reason"
    ].startswith("ops: expected any of")


def test_a_limit_of_memory_is_kept():
    (subject,) = BenchConfig(ops=("constant",), lengths=(64,), baselines=False, peers=False).subjects()
    request = {"subject": subject.model_dump(mode="json"), "repeats": 1, "time_limit": 1.0, "memory_limit": 1000}
    found = running.ask(request)
    assert found["seconds"] == [] and "more than the 1000 there are" in found["reason"] and found["temporary_bytes"]


def test_rows_of_another_machine_are_not_mixed_in(tmp_path):
    with Records(tmp_path, MACHINE) as records:
        records.add({"key": "a"})
    with pytest.raises(UserError, match="holds rows of another processor .p, here q."):
        Records(tmp_path, MACHINE | {"processor": "q"})
    with Records(tmp_path, MACHINE | {"date": "2026-01-02"}) as records:
        assert records.rows == {"a": {"key": "a"}}


@pytest.mark.slow
def test_an_interrupted_run_keeps_its_rows(tmp_path):
    # As from a terminal: what a shell without job control starts in the background ignores Ctrl-C.
    listen = "import signal, sys; signal.signal(signal.SIGINT, signal.default_int_handler); "
    start = listen + "from effarch.cli import run; sys.exit(run(sys.argv[1:]))"
    words = [sys.executable, "-c", start, "bench", *QUICK, "lengths=[64,128,256,512,1024,2048]", "repeats=3"]
    process = subprocess.Popen(words, cwd=tmp_path, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    rows = tmp_path / "runs" / "bench" / "rows.jsonl"
    deadline = time.monotonic() + 120
    while (not rows.exists() or len(rows.read_text().splitlines()) < 2) and time.monotonic() < deadline:
        time.sleep(0.1)
    os.kill(process.pid, signal.SIGINT)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 130 and errors.strip() == "interrupted"
    kept = rows.read_text().splitlines()
    assert 2 <= len(kept) < 7 and all(json.loads(line)["key"] for line in kept)


@pytest.mark.parametrize(
    "words, message",
    [
        (["mixers=[retnett]"], 'unknown mixer "retnett"'),
        (["ops=[constnat]"], 'got "constnat"; did you mean "constant"?'),
        (["targets=[v5]"], 'targets: expected any of v5e, v5p, v6e, h100, h200, got "v5"; did you mean'),
        (["preset=quik"], "preset: expected"),
        (["levels=[model]"], "model: expected a YAML file for the level model, got none"),
        (["model=none.yaml"], "model: none.yaml"),
        (["lengths=[]"], "lengths: expected"),
    ],
)
def test_mistakes_are_named(words, message, capsys):
    assert run(["bench", *words]) == 2
    assert message in capsys.readouterr().err


def test_a_preset_is_what_other_keys_start_from():
    quick = BenchConfig(preset="quick", heads=3)
    assert quick.heads == 3 and quick.run_name == "bench-quick" and quick.chosen_levels() == ("op",)
    assert {s.mode for s in quick.subjects()} == {"training"}
    assert BenchConfig(preset="paper").head_dim == 128
    assert max(BenchConfig(preset="long").lengths) == 2**20


def test_baselines_come_first_and_everything_said_is_measured():
    subjects = BenchConfig(mixers=("gla",), modes=("training", "decode"), lengths=(64, 32), peers=False).subjects()
    first = [(s.mode, s.name, s.length) for s in subjects[:2]]
    assert first == [("training", "softmax_attention", length) for length in (32, 64)]
    names = {s.name for s in subjects if s.mode == "decode"}
    assert names == {"softmax_attention", "sliding_window window=512", "sliding_window window=512 sinks=0", "gla"}
    assert [s.baseline for s in subjects if s.name == "gla"] == [False] * 4
    targets = BenchConfig(ops=("constant",), targets=("v5e",), lengths=(64,)).subjects()
    assert {s.target for s in targets} == {"v5e"} and all(s.peer is None for s in targets)
