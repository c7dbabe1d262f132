"""The report holds what it was given, escaped, and needs nothing from elsewhere."""

import json
import os
import re
import subprocess
import sys
import xml.etree.ElementTree as ElementTree
from html.parser import HTMLParser

import numpy as np
import pytest

from effarch.eval import figures, plots, report

NASTY = 'a <script>alert(1)</script> & "q" $x_1$ {sections}'
MODELS = [
    {
        "name": name,
        "reference": name == "teacher",
        "bits_per_byte": np.float32(2 - 0.125 * i),
        "kl_bits": 0.0 if name == "teacher" else 0.5 / (i + 1),
        "recall_within": 0.75,
        "recall_beyond": np.nan if name == "teacher" else 0.25,
        "parameters": 1_310_976,
        "state_bytes": {1024: 2**20, 16384: 2**24, 2**20: 2**30} if name == "teacher" else {1024: 2**17, 16384: 2**17},
        "decode_tokens_per_s": {1024: 900.0, 16384: 210.5},
        "recall_by_distance": {8: 1.0, 64: 0.5, 256: np.float64(0.125)},
        "recall_by_kind": {"copy": {"within": 0.5, "beyond": 0.0625}, "lookup": {"within": 1.0, "beyond": 0.4375}},
        "agreement": 1.0 if name == "teacher" else 0.625,
        "perplexity": {512: 9.5, 2048: 8.25},
        "perplexity_by_position": {256: 12.0, 512: 9.5, 2048: 8.25},
        "needle": {512: {"0": 1.0, "0.5": 0.25}, 2048: {"0": 0.5, "0.5": np.nan}},
        "needle_mean": 0.583,
        "mqar_mean": 0.337,
        "tokens": 12_345 * i,
        "seconds": 61.5 * i,
        "break_even": 4321 if i else None,
    }
    for i, name in enumerate(["teacher", "window", NASTY])
]
REPORT = {
    "title": NASTY,
    "summary": NASTY,
    "window": 64,
    "run": {"command": NASTY, "versions": {"jax": "1.2.3"}, "machine": ["cpu", 2], "corpus": {"digest": "sha256:abc"}},
    "models": MODELS,
    "curves": [
        {"phase": "teacher", "metric": "nats", "rows": [{"tokens": 10 * i, "loss": 2.0 / (i + 1)} for i in range(5)]},
        {"phase": NASTY, "metric": "nats", "rows": [{"tokens": 10, "loss": float("inf")}, {"tokens": 20, "loss": 1.0}]},
        {"phase": "align", "metric": "error", "rows": [{"tokens": 10, "loss": 1.0}, {"step": 3, "grad_norm": 1.0}]},
        {"phase": "nothing yet", "metric": "error", "rows": []},
    ],
    "notes": [NASTY],
    "sample": {"prompt": "def <f>", "text": "(x):\n    return x & 1\0\ud800" + NASTY},
}
VOID = {"meta", "br", "link", "img"}


class Reader(HTMLParser):
    """Checks that tags nest; keeps text, attributes and headings."""

    def __init__(self):
        super().__init__(convert_charrefs=True)
        self.open, self.tags, self.ids, self.text, self.links = [], [], [], [], []

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.ids += [value for key, value in attrs if key == "id"]
        self.links += [(key, value) for key, value in attrs if key in ("href", "xlink:href", "src", "action")]
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.handle_starttag(tag, attrs)
        self.handle_endtag(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.text.append(data)


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    folder = tmp_path_factory.mktemp("run") / "new"
    path = report.write_report(folder, REPORT)
    assert path == folder / "report.html"
    return folder


@pytest.fixture(scope="module")
def page(written):
    return (written / "report.html").read_text(encoding="utf-8")


def read(page):
    reader = Reader()
    reader.feed(page)
    reader.close()
    assert not reader.open
    return reader


def test_the_json_is_strict_and_whole(written):
    def refuse(name):
        raise AssertionError(name)

    loaded = json.loads((written / "report.json").read_text(encoding="utf-8"), parse_constant=refuse)
    assert sorted(os.listdir(written)) == ["report.html", "report.json"]
    assert loaded["models"][0]["recall_beyond"] is None and loaded["curves"][1]["rows"][0]["loss"] is None
    assert loaded["models"][1]["bits_per_byte"] == 1.875 and loaded["models"][0]["state_bytes"]["16384"] == 2**24
    assert loaded["sample"]["text"] == "(x):\n    return x & 1\ufffd\ufffd" + NASTY


def test_the_page_is_whole_and_shows_everything_as_text(page):
    reader = read(page)
    text = "".join(reader.text)
    # title, heading, summary, two tables, note, legend, two bars, a map, a curve and its caption, sample, command
    assert "script" not in reader.tags and text.count(NASTY) == 14
    assert len(reader.ids) == len(set(reader.ids)), "an id appears twice"
    for shown in (
        "1.875",
        "0.2500",
        "75.0",
        "1.3M",
        "16 MiB",
        "State at 1M",
        "Perplexity at 2k",
        "8.25",
        "Beyond: lookup",
        "43.8",
        "33.7",
        "12.3k",
        "1 min 02 s",
        "4321",
        "210",
        "1.2.3",
        "cpu, 2",
        "sha256:abc",
        "def <f>",
    ):
        assert shown in text, shown
    for heading in ("Results", "Plots", "Sample", "What was run"):
        assert heading in text


def test_the_page_needs_nothing_from_elsewhere(page):
    assert set(re.findall(r"https?://[^\"' )]+", page)) <= {
        "http://www.w3.org/2000/svg",
        "http://www.w3.org/1999/xlink",
    }
    reader = read(page)
    assert reader.links and all(value.startswith("#") and value[1:] in reader.ids for _, value in reader.links)
    assert set(re.findall(r"url\(#([^)]*)\)", page)) <= set(reader.ids)
    assert "@import" not in page and not {"link", "img", "iframe", "object"} & set(reader.tags)


def test_the_drawings_are_xml_that_takes_the_colours_of_the_page(page):
    drawings = re.findall(r"<svg.*?</svg>", page, re.DOTALL)
    assert len(drawings) == 9  # bits, KL, perplexity, recall, needle, speed, state, and one per metric of the curves
    defined = set(re.findall(r"(--[\w]+):", page))
    for drawing in drawings:
        ElementTree.fromstring(drawing)
        assert set(re.findall(r"var\((--\w+)\)", drawing)) <= defined
        assert not re.search(r"#[0-9a-f]{6}\b", drawing), "a colour that a dark page cannot change"
    assert "window 64" in drawings[3] and "1 GiB" in drawings[6]
    assert drawings[4].count(">25<") == 3 and drawings[4].count(">50<") == 3 and ">nan<" not in drawings[4]
    assert "\ufffd" not in "".join(drawings)


def test_the_same_report_is_the_same_bytes(page, tmp_path):
    assert report.write_report(tmp_path, REPORT).read_text(encoding="utf-8") == page


@pytest.mark.parametrize("key", sorted(REPORT.keys() | MODELS[1].keys() - {"name"}))
def test_what_is_missing_is_left_out(key, tmp_path):
    models = [{k: v for k, v in m.items() if k != key} for m in MODELS]
    part = {k: v for k, v in (REPORT | {"models": models}).items() if k != key}
    drawn = figures.figures(report.strict(part))  # which plots; drawing them is tested once, above
    plotted = ("bits_per_byte", "kl_bits", "perplexity_by_position", "recall_by_distance", "needle")
    plotted += ("state_bytes", "decode_tokens_per_s")
    assert len(drawn) == 9 - {"curves": 2, "models": 7}.get(key, key in plotted)
    tables = report.results_table(report.strict(models)), report.costs_table(report.strict(models))
    scores = ("bits_per_byte", "kl_bits", "agreement", "recall_within", "recall_beyond", "needle_mean", "mqar_mean")
    lost = {"perplexity": 2, "recall_by_kind": 2}.get(key, key in (*scores, "parameters", "tokens", "seconds"))
    assert len(tables[0].columns) == 15 - lost
    lost = {"state_bytes": 3, "decode_tokens_per_s": 2}.get(key, key == "break_even")
    assert len(tables[1].columns) == 7 - lost
    read(report.write_report(tmp_path, {k: v for k, v in part.items() if k in ("run", "sample", "title")}).read_text())


def test_an_unfinished_write_leaves_the_old_report(tmp_path, monkeypatch):
    report.write_report(tmp_path, {"title": "old"})

    def fail(*_):
        raise OSError("disk full")

    monkeypatch.setattr(report.os, "replace", fail)
    with pytest.raises(OSError, match="disk full"):
        report.write_report(tmp_path, {"title": "new"})
    assert (
        "old" in (tmp_path / "report.html").read_text()
        and json.loads((tmp_path / "report.json").read_text())["title"] == "old"
    )


def test_errors_say_where(tmp_path):
    with pytest.raises(
        ValueError, match=r"report\.run\.a\.1: expected text, a number, a list or a mapping, got object"
    ):
        report.write_report(tmp_path, {"run": {"a": [1, object()]}})
    with pytest.raises(ValueError, match=r"models\.1\.name: expected text, got None"):
        report.write_report(tmp_path, {"models": [{"name": "a"}, {"bits_per_byte": 1.0}]})
    assert not os.listdir(tmp_path)


def test_lines_that_coincide_are_all_visible():
    points = ((1.0, 2.0), (2.0, 3.0))
    svg = plots.lines([plots.Series(f"s{i}", i, points) for i in range(3)], x="x", y="y")
    dashes = set(re.findall(r"stroke-dasharray: [\d., ]+; stroke-dashoffset: [\d.-]+; stroke: var\(--c\d\)", svg))
    assert len(dashes) == 3, svg[:2000]


def test_matplotlib_is_imported_only_to_draw_and_pyplot_never():
    code = """
import sys
from effarch.eval import report
assert "matplotlib" not in sys.modules
report.page({"models": [{"name": "a", "bits_per_byte": 1.0}]})
assert "matplotlib" in sys.modules and "matplotlib.pyplot" not in sys.modules
"""
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)
