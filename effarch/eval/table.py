"""One table, shown three ways: in a terminal, as Markdown, as HTML."""

import html
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

MISSING = "-"
GAP = "  "


def count(value: float) -> str:
    """A number of things with at most three digits: ``950``, ``13.1k``, ``2.1M``."""
    return _scaled(value, 1000, ("", "k", "M", "G", "T"), "")


def size(value: float) -> str:
    """A number of bytes: ``512 B``, ``16 KiB``, ``1.5 GiB``."""
    return _scaled(value, 1024, ("B", "KiB", "MiB", "GiB", "TiB"), " ")


def context(tokens: float) -> str:
    """A length in tokens, in powers of two as the field says it: ``64``, ``1k``, ``16k``, ``1M``."""
    return _scaled(tokens, 1024, ("", "k", "M", "G"), "")


def percent(value: float) -> str:
    """A share in 0 to 1 as ``97.5``."""
    return f"{100 * value:.1f}"


def duration(seconds: float) -> str:
    """A time as ``9.5 s``, ``3 min 20 s``, ``2 h 05 min``."""
    if seconds < 59.95:
        return f"{seconds:.1f} s"
    if seconds < 3599.5:
        return f"{round(seconds) // 60} min {round(seconds) % 60:02} s"
    return f"{round(seconds / 60) // 60} h {round(seconds / 60) % 60:02} min"


def brief(seconds: float) -> str:
    """A time that may be short: ``12.5 ms``, and from a second on as :func:`duration`."""
    return duration(seconds) if seconds >= 1 else f"{1e3 * seconds:.3g} ms"


def _scaled(value: float, base: int, units: Sequence[str], space: str) -> str:
    index = 0
    while abs(value) >= base * 0.9995 and index < len(units) - 1:  # 999.96 would be shown as 1000
        value, index = value / base, index + 1
    digits = 0 if float(value).is_integer() or abs(value) >= 100 else 1
    return f"{value:.{digits}f}{space}{units[index]}"


def _class(*names: str) -> str:
    """The attribute of an HTML tag; nothing for no names."""
    given = " ".join(filter(None, names))
    return f' class="{given}"' if given else ""


@dataclass(frozen=True)
class Column:
    """One column of a :class:`Table`.

    Args:
        key: what rows call it.
        title: the heading.
        unit: shown small below the heading; empty for none.
        format: a format specification such as ``".3f"``, or a function from the value to text.
        better: the direction that is better; the best value is then marked.
        align: the side that cells stand on; the first column is always at the left.
    """

    key: str
    title: str
    unit: str = ""
    format: str | Callable[[Any], str] = ""
    better: Literal["lower", "higher"] | None = None
    align: Literal["left", "right"] = "right"

    def show(self, value: Any) -> str:
        """``value`` as text; None and NaN are missing."""
        if value is None or value != value:
            return MISSING
        return format(value, self.format) if isinstance(self.format, str) else self.format(value)

    @property
    def heading(self) -> str:
        """The title, with an arrow towards what is better."""
        return f"{self.title}\N{NO-BREAK SPACE}{'↓' if self.better == 'lower' else '↑'}" if self.better else self.title


@dataclass(frozen=True)
class Table:
    """Rows under typed columns; the first column names the row.

    Args:
        columns: left to right.
        rows: one mapping per row, from column key to value; a missing key is an empty cell.
        reference: names (values of the first column) of rows that are shown but do not compete for the best value.
    """

    columns: tuple[Column, ...]
    rows: tuple[Mapping[str, Any], ...]
    reference: frozenset[str] = frozenset()

    def filled(self) -> "Table":
        """Without the columns in which no row has anything to show."""
        shown = [any(cell not in (MISSING, "") for cell in cells) for cells in zip(*self.cells(), strict=True)]
        return Table(tuple(c for c, some in zip(self.columns, shown, strict=True) if some), self.rows, self.reference)

    def cells(self) -> list[list[str]]:
        """Every row's texts."""
        return [[column.show(row.get(column.key)) for column in self.columns] for row in self.rows]

    def best(self) -> set[tuple[int, int]]:
        """``(row, column)`` of the best values, compared as they are shown; none where all rows look the same."""
        name, cells, found = self.columns[0].key, self.cells(), set()
        for j, column in enumerate(self.columns):
            entries = [
                (row[column.key], i)
                for i, row in enumerate(self.rows)
                if column.better and cells[i][j] != MISSING and row.get(name) not in self.reference
            ]
            if len({cells[i][j] for _, i in entries}) > 1:
                best = (min if column.better == "lower" else max)(entries)[1]
                found |= {(i, j) for _, i in entries if cells[i][j] == cells[best][j]}
        return found

    def plain(self, width: int | None = None) -> str:
        """Text for a terminal, in ASCII as far as the rows are; ``*`` marks the best of a column.

        Args:
            width: columns that do not fit into this many characters go to further blocks, each led by the first column.
        """
        return "\n".join("".join(text for text, _ in line).rstrip() for line in self._lines(width))

    def rich(self, width: int | None = None) -> Any:
        """:meth:`plain` as a ``rich.text.Text`` with the best in colour."""
        from rich.text import Text

        return Text("\n", no_wrap=True).join(Text.assemble(*line) for line in self._lines(width))

    def _lines(self, width: int | None) -> list[list[tuple[str, str]]]:
        """Lines of ``(text, style)``; the blocks are a blank line apart."""
        best, columns = self.best(), []
        for j, column in enumerate(self.columns):
            cells = [(row[j] + ("*" if (i, j) in best else " ")[: bool(j)]) for i, row in enumerate(self.cells())]
            heads = [text + " " * bool(j) for text in (column.title, column.unit)]
            wide = max(map(len, heads + cells))
            styles = ["bold", "dim", "dim", *("bold green" if (i, j) in best else "" for i in range(len(cells)))]
            pad = str.ljust if not j or column.align == "left" else str.rjust
            texts = [pad(text, wide) for text in [*heads, "-" * wide, *cells]]
            columns.append(list(zip(texts, styles, strict=True)))
        first, *others = columns
        blocks = [[first]]
        for column in others:
            used = sum(len(c[0][0]) + len(GAP) for c in blocks[-1])
            if width is not None and len(blocks[-1]) > 1 and used + len(column[0][0]) > width:
                blocks.append([first])
            blocks[-1].append(column)
        lines = []
        for block in blocks:
            rows = [
                row for row in zip(*block, strict=True) if any(text.strip() for text, _ in row)
            ]  # no line of no units
            lines += [[], *([part for cell in row for part in (cell, (GAP, ""))][:-1] for row in rows)]
        return lines[1:]

    def markdown(self) -> str:
        """A pipe table; the best of a column is bold."""
        best = self.best()

        def line(texts: Sequence[str]) -> str:
            return "| " + " | ".join(t.replace("|", r"\|").replace("\n", " ") for t in texts) + " |"

        heads = [c.heading + (f" ({c.unit})" if c.unit else "") for c in self.columns]
        rule = "|" + "|".join("---:" if i and c.align == "right" else "---" for i, c in enumerate(self.columns)) + "|"
        rows = [
            line([f"**{t}**" if (i, j) in best else t for j, t in enumerate(row)]) for i, row in enumerate(self.cells())
        ]
        return "\n".join([line(heads), rule, *rows])

    def html(self) -> str:
        """A ``<table>``, everything escaped; the best cells carry the class ``best``."""
        best = self.best()
        left = ["left" if c.align == "left" else "" for c in self.columns]
        heads = "".join(
            f'<th scope="col"{_class(side)}>{html.escape(c.heading)}<small>{html.escape(c.unit)}</small></th>'
            for c, side in zip(self.columns, left, strict=True)
        )
        rows = []
        for i, row in enumerate(self.cells()):
            first, *others = map(html.escape, row)
            marks = [_class("best" if (i, j) in best else "", left[j]) for j in range(1, len(row))]
            cells = "".join(f"<td{mark}>{text}</td>" for mark, text in zip(marks, others, strict=True))
            rows.append(f'<tr><th scope="row">{first}</th>{cells}</tr>')
        return f"<table><thead><tr>{heads}</tr></thead><tbody>\n{chr(10).join(rows)}\n</tbody></table>"
