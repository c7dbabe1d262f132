"""One table in three dresses: what is shown, what is marked, what is escaped."""

import io
from html.parser import HTMLParser

import pytest
from rich.console import Console

from effarch.eval.page import PAGE
from effarch.eval.table import Column, Table, context, count, duration, percent, size

TABLE = Table(
    (
        Column("name", "Model"),
        Column("loss", "Loss", "bits", ".2f", "lower"),
        Column("recall", "Recall", "%", percent, "higher"),
        Column("note", "Note"),
    ),
    (
        {"name": "teacher", "loss": 1.0, "recall": 1.0, "note": "a|b"},
        {"name": "<b>&", "loss": 1.251, "recall": 0.5},
        {"name": "tied", "loss": 1.249, "recall": float("nan")},
        {"name": "worse", "loss": 2.0, "recall": 0.25, "note": None},
    ),
    reference=frozenset({"teacher"}),
)


def test_the_best_is_marked_as_it_is_shown_and_references_do_not_compete():
    assert TABLE.best() == {(1, 1), (2, 1), (1, 2)}
    rows = TABLE.rows
    assert Table(TABLE.columns, rows[1:3]).best() == set(), "alike, or alone: nothing is best"
    assert Table(TABLE.columns, rows).best() == {(0, 1), (0, 2)}


def test_plain():
    assert TABLE.plain() == (
        "Model    Loss   Recall   Note\n"
        "         bits        %\n"
        "-------  -----  -------  -----\n"
        "teacher  1.00    100.0    a|b\n"
        "<b>&     1.25*    50.0*     -\n"
        "tied     1.25*       -      -\n"
        "worse    2.00     25.0      -"
    )
    assert TABLE.plain().isascii()


def test_a_column_of_words_stands_at_the_left():
    table = Table(
        (Column("name", "Model"), Column("note", "Note", align="left"), Column("n", "n")),
        (
            {"name": "a", "note": "some words", "n": 10},
            {"name": "b", "note": "one", "n": 1},
        ),
    )
    assert table.plain() == (
        "Model  Note          n\n-----  -----------  ---\na      some words   10\nb      one           1"
    )
    assert table.markdown().split("\n")[1] == "|---|---|---:|"
    assert table.html().count('class="left"') == 3 and "text-align: left" in PAGE


def test_narrow_terminals_get_blocks():
    blocks = TABLE.plain(24).split("\n\n")
    assert [b.split("\n")[0].split() for b in blocks] == [["Model", "Loss", "Recall"], ["Model", "Note"]]
    assert max(len(line) for b in blocks for line in b.split("\n")) <= 24
    assert len(TABLE.plain(1).split("\n\n")) == 3, "one column always fits"

    stream = io.StringIO()
    Console(file=stream, width=24, color_system=None).print(TABLE.rich(24))
    assert [line.rstrip() for line in stream.getvalue().rstrip("\n").split("\n")] == TABLE.plain(24).split("\n")


def test_markdown():
    lines = TABLE.markdown().split("\n")
    assert lines[0] == "| Model | Loss\N{NO-BREAK SPACE}↓ (bits) | Recall\N{NO-BREAK SPACE}↑ (%) | Note |"
    assert lines[1:4] == [
        "|---|---:|---:|---:|",
        r"| teacher | 1.00 | 100.0 | a\|b |",
        "| <b>& | **1.25** | **50.0** | - |",
    ]


def test_html_holds_the_texts_and_nothing_else():
    class Reader(HTMLParser):
        texts: list[str] = []
        best: list[str] = []
        tags: list[str] = []

        def handle_starttag(self, tag, attrs):
            self.tags.append(tag)
            self.marked = ("class", "best") in attrs

        def handle_data(self, data):
            if data.strip():
                (self.best if self.marked else self.texts).append(data)

    reader = Reader()
    reader.feed(TABLE.html())
    assert set(reader.tags) == {"table", "thead", "tbody", "tr", "th", "td", "small"}
    assert reader.best == ["1.25", "50.0", "1.25"]
    assert {"<b>&", "a|b", "teacher", "bits"} <= set(reader.texts)


@pytest.mark.parametrize(
    ("show", "value", "text"),
    [
        (count, 950, "950"),
        (count, 999_960, "1.0M"),
        (count, 1_310_976, "1.3M"),
        (count, 0, "0"),
        (size, 512, "512 B"),
        (size, 16 * 2**20, "16 MiB"),
        (size, 1536, "1.5 KiB"),
        (size, 147_579, "144 KiB"),
        (context, 64, "64"),
        (context, 16384, "16k"),
        (context, 2**20, "1M"),
        (percent, 0.9749, "97.5"),
        (duration, 59.94, "59.9 s"),
        (duration, 59.96, "1 min 00 s"),
        (duration, 3599.6, "1 h 00 min"),
        (duration, 7500, "2 h 05 min"),
    ],
)
def test_units(show, value, text):
    assert show(value) == text
