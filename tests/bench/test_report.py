"""Reports and their comparison, of rows that were made up."""

import csv
import io
import json
import re

import pytest

from effarch.bench.compare import compared
from effarch.bench.report import tables, write_report
from effarch.bench.subject import Subject
from effarch.cli import run

MACHINE = {
    "processor": "p",
    "cores": 2,
    "platform": "cpu",
    "date": "2026-01-01",
    "command": "effarch bench",
    "jax": "1",
}
CEILINGS = {"matmul": 1e11, "copy": 1e10}
LENGTHS = (8192, 16384, 32768)


def row(name, length, seconds, memory, *, mode="training", target=None, **more):
    subject = Subject(name=name, mode=mode, length=length, target=target, baseline=name == "softmax")
    return {
        "key": subject.key,
        "series": list(subject.series),
        "subject": subject.model_dump(mode="json"),
        "seconds": [seconds, 1.01 * seconds, 0.99 * seconds],
        "temporary_bytes": memory,
        "resident_bytes": memory,
        "compile_seconds": 1.0,
        "tokens": length,
        "flops": 10**9,
        "traffic": 10**6,
        "state_bytes": 2**17,
        **more,
    }


def rows(slower=1.0, fatter=1):
    found = [row("softmax", t, 1e-9 * t**2, 100 * t) for t in LENGTHS]
    found += [row("constant", t, slower * 2e-5 * t, fatter * 200 * t) for t in LENGTHS]
    estimated = row("constant", 8192, 0.0, 5, target="v5e", estimated_seconds=1e-3)
    found += [estimated | {"seconds": []}]
    found += [row("constant", t, 1e-2, 10, mode="decode") | {"tokens": 32} for t in LENGTHS]
    return [*found, row("constant", 65536, 0, 0) | {"seconds": [], "reason": "not begun: would take about 99 s"}]


def test_all_four_files_say_the_same(tmp_path):
    page = write_report(tmp_path, rows(), machine=MACHINE, ceilings=CEILINGS)
    report = json.loads((tmp_path / "report.json").read_text())
    assert report["machine"] == MACHINE and len(report["rows"]) == len(rows())
    fits = {(f["name"], f["mode"], f["target"]): f for f in report["fits"]}
    assert fits["constant", "training", None]["time"]["exponent"] == pytest.approx(1.0)
    assert fits["softmax", "training", None]["time"]["exponent"] == pytest.approx(2.0)
    table = list(csv.DictReader(io.StringIO((tmp_path / "report.csv").read_text())))
    assert len(table) == len(rows()) and float(table[0]["median_seconds"]) == pytest.approx(1e-9 * 8192**2)
    (estimated,) = (line for line in table if line["target"] == "v5e")
    assert estimated["median_seconds"] == "" and estimated["estimated_seconds"] == "0.001"  # never mixed
    markdown = (tmp_path / "report.md").read_text()
    assert "Ops, forward and backward, compiled for v5e: memory exact, time estimated" in markdown
    assert (
        "| constant |" in markdown and "1.00" in markdown and "2.00" in markdown and "would take about 99 s" in markdown
    )
    assert "19.5k" in markdown  # linear at 2e-5 T is faster than quadratic at 1e-9 T^2 from 20,000 tokens
    text = page.read_text()
    assert text.count("<svg") == 5 and "T^2.00" in text and "constant faster than softmax" in text
    assert not re.search(r'(?:src|href)="(?!#)', text) and "<script" not in text
    ids = re.findall(r'\bid="([^"]+)"', text)
    assert len(ids) == len(set(ids))


def test_accuracy_stands_beside_speed(tmp_path):
    records = [
        {"name": "gla", "state_bytes": {"32": 5120}, "scores": {"held out": {"accuracy": a, "nats": 0.1}}}
        for a in (0.5, 0.9)
    ]
    (tmp_path / "results.jsonl").write_text("".join(json.dumps(r) + "\n" for r in records))
    page = write_report(tmp_path, rows(), machine=MACHINE, ceilings={}, accuracy=str(tmp_path / "results.jsonl"))
    assert "Accuracy against state" in page.read_text()


def test_comparing_flags_what_is_slower_or_fatter_beyond_the_noise(tmp_path, capsys):
    for name, more in (("a", {}), ("b", {"slower": 1.03}), ("c", {"slower": 1.5}), ("d", {"fatter": 2})):
        write_report(tmp_path / name, rows(**more), machine=MACHINE, ceilings=CEILINGS)

    def compare(other):
        code = run(["bench", "compare", str(tmp_path / "a/report.json"), str(tmp_path / other / "report.json")])
        return code, capsys.readouterr().out

    assert compare("a")[0] == compare("b")[0] == 0
    code, told = compare("c")
    assert code == 1 and told.count("SLOWER") == 3 and "3 of" in told
    code, told = compare("d")
    assert code == 1 and told.count("FATTER") == 3
    assert run(["bench", "compare", str(tmp_path / "a/report.json")]) == 2
    assert "missing AFTER" in capsys.readouterr().err
    assert run(["bench", "compare", str(tmp_path / "a/report.csv"), str(tmp_path / "none")]) == 2
    assert "before: " in capsys.readouterr().err


def test_noise_excuses_and_a_lost_row_does_not():
    noisy = row("constant", 8192, 1.0, 5) | {"seconds": [0.5, 1.0, 1.5]}
    assert compared(noisy, noisy | {"seconds": [1.0, 1.4, 1.8]})["verdict"] == "same"
    assert compared(noisy, noisy | {"seconds": []})["verdict"] == "DOES NOT RUN"
    quiet = row("constant", 8192, 1.0, 5)
    assert compared(quiet, row("constant", 8192, 0.5, 5))["verdict"] == "faster"


def test_an_estimate_at_the_least_crosses_nothing():
    """What kernels hide is a bound from below: it may be crossed, but not itself be called faster."""

    def curve(name, slope, source):
        return [
            row(name, t, 0.0, 5, target="v5e", estimated_seconds=slope * t, bound="memory", source=source)
            | {"seconds": []}
            for t in LENGTHS
        ]

    found = [
        *curve("softmax", 2e-6, "formula"),
        *curve("constant", 1e-6, "compiled"),
        *curve("scalar", 1e-6, "formula"),
    ]
    (shown,) = tables(found, {}).values()
    lines = {line.split()[0]: line for line in shown.plain().splitlines() if line.strip()}
    assert "memory, counted" in lines["constant"] and "8k" in lines["constant"]
    assert "memory, at least" in lines["scalar"] and "8k" not in lines["scalar"]
