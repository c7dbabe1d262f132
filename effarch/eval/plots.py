"""Plots as SVG text that takes its colours from the page's CSS, so that one drawing suits a light and a dark page.

The page defines ``--ink`` (text), ``--muted`` (axes), ``--grid`` and ``--c0`` to ``--c7`` (series). Text stays text.
matplotlib is imported only here, when something is drawn, and without pyplot's global state.
"""

import io
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

COLORS = 8
INK, MUTED, GRID = "#010101", "#010102", "#010103"  # stand-ins that `_svg` replaces by the variables of the page
_VARIABLES = {INK: "--ink", MUTED: "--muted", GRID: "--grid"} | {f"#0202{i:02x}": f"--c{i}" for i in range(COLORS)}
_STYLE: dict[Any, Any] = {  # matplotlib lists the keys it takes as a type
    "svg.hashsalt": "effarch",
    "svg.fonttype": "none",
    "font.family": "sans-serif",
    "font.size": 9,
    "text.parse_math": False,  # a name may hold dollar signs
    "axes.edgecolor": GRID,
    "axes.labelcolor": MUTED,
    "axes.labelsize": 8.5,
    "axes.grid": True,
    "axes.axisbelow": True,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "grid.color": GRID,
    "grid.linewidth": 0.6,
    "text.color": INK,
    "xtick.color": GRID,
    "ytick.color": GRID,
    "xtick.labelcolor": MUTED,
    "ytick.labelcolor": MUTED,
    "xtick.labelsize": 8.5,
    "ytick.labelsize": 8.5,
}


def paint(color: int) -> str:
    """What stands for a colour of the page, 0 to 7, until a drawing is done; larger ones wrap around."""
    return f"#0202{color % COLORS:02x}"


@dataclass(frozen=True)
class Series:
    """One line or bar.

    Args:
        name: what the legend calls it.
        color: 0 to 7, the page's variable ``--c<color>``; larger ones wrap around.
        points: ``(x, y)``, in order of x; a bar has one point, whose y is drawn.
    """

    name: str
    color: int
    points: tuple[tuple[float, float], ...]

    @property
    def paint(self) -> str:
        return paint(self.color)


def lines(
    series: Sequence[Series],
    *,
    x: str,
    y: str,
    log: str = "",
    ticks: Mapping[float, str] | None = None,
    format_x: Callable[[float], str] | None = None,
    format_y: Callable[[float], str] | None = None,
    limits: tuple[float | None, float | None] = (None, None),
    mark: tuple[float, str] | None = None,
    markers: bool = True,
    legend: bool = False,
) -> str:
    """Lines over x, as SVG.

    Args:
        series: lines; those with the same points share one line in alternating dashes, so that none hides another.
        x: label of the x axis.
        y: label of the y axis.
        log: the axes on a logarithmic scale (base 2): "", "x", "y" or "xy".
        ticks: positions and labels on the x axis; None leaves them to matplotlib.
        format_x: the label of a value on the x axis, where ``ticks`` does not say.
        format_y: the label of a value on the y axis.
        limits: lowest and highest y shown; None leaves it to the data.
        mark: an x to mark with a vertical line, and what to call it.
        markers: whether to draw the points themselves.
        legend: whether to name the lines inside the plot.
    """

    def draw(axes: Any) -> None:
        for s in series:
            twins = [other for other in series if other.points == s.points]
            rank, last = twins.index(s), len(twins) - 1
            axes.plot(
                *zip(*s.points, strict=True),
                color=s.paint,
                label=s.name,
                linewidth=1.6,
                linestyle=(5 * rank, (5, 5 * last)) if last else "-",
                dash_capstyle="butt",
                marker="o" if markers else None,
                markersize=4 + 1.6 * (last - rank),
            )
        if "x" in log:
            axes.set_xscale("log", base=2)
        if "y" in log:
            axes.set_yscale("log", base=2)
        if ticks:
            axes.set_xticks(list(ticks), list(ticks.values()))
        if format_x:
            axes.xaxis.set_major_formatter(lambda value, _: format_x(value))
        if format_y:
            axes.yaxis.set_major_formatter(lambda value, _: format_y(value))
        axes.set_ylim(*limits)
        if mark and min(s.points[0][0] for s in series) < mark[0] < max(s.points[-1][0] for s in series):
            axes.axvline(mark[0], color=MUTED, linewidth=1, linestyle=(0, (2, 2)))
            axes.annotate(mark[1], (mark[0], 1), xycoords=axes.get_xaxis_transform(), ha="center", va="bottom").set(
                color=MUTED, fontsize=8
            )
        if legend:
            axes.legend(frameon=False, fontsize=8.5)
        axes.set(xlabel=x, ylabel=y)

    return _svg(draw, height=2.6)


def points(
    series: Sequence[Series],
    *,
    x: str,
    y: str,
    log: bool = False,
    format_x: Callable[[float], str] | None = None,
    limits: tuple[float | None, float | None] = (None, None),
) -> str:
    """One named point per series, as SVG; names give way to each other.

    Args:
        series: of one point each. x, y: labels of the axes. log: the x axis on a logarithmic scale (base 2).
        format_x: the label of a value on the x axis. limits: lowest and highest y shown; None leaves it to the data.
    """

    def draw(axes: Any) -> None:
        if log:
            axes.set_xscale("log", base=2)
        if format_x:
            axes.xaxis.set_major_formatter(lambda value, _: format_x(value))
        axes.set(xlabel=x, ylabel=y)
        axes.margins(x=0.25)
        for s in series:
            axes.plot(*zip(*s.points, strict=True), "o", color=s.paint, markersize=4)
        axes.set_ylim(*limits)
        axes.figure.draw_without_rendering()  # so that places on the page are known
        taken: list[tuple[float, float, int]] = []
        for s in sorted(series, key=lambda s: s.points[0][1], reverse=True):
            at = axes.transData.transform(s.points[0]) * 72 / axes.figure.dpi
            places = [(at[0] + x, at[1] + y, len(s.name)) for x, y in _OFFSETS]
            free = [i for i, place in enumerate(places) if not any(_collide(place, other) for other in taken)]
            best = free[0] if free else 0
            taken.append(places[best])
            axes.annotate(
                s.name,
                s.points[0],
                xytext=_OFFSETS[best],
                textcoords="offset points",
                fontsize=_SMALL,
                color=s.paint,
                va="center",
                arrowprops={"arrowstyle": "-", "color": s.paint, "linewidth": 0.3, "shrinkA": 0, "shrinkB": 2},
            )

    return _svg(draw, height=4.6)


_SMALL = 6.5  # points; of the names beside points
_OFFSETS = [(x, -8.0 * row) for row in range(40) for x in (6.0, -60.0, 66.0)]  # of a name from its point, nearest first


def _collide(a: tuple[float, float, int], b: tuple[float, float, int]) -> bool:
    """Whether two names overlap: where each starts, in points, and its letters."""
    width = 0.6 * _SMALL
    apart = a[0] + width * a[2] < b[0] or b[0] + width * b[2] < a[0]
    return not apart and abs(a[1] - b[1]) < 1.15 * _SMALL


def bars(series: Sequence[Series], *, x: str, log: bool = False, format_x: str = ".3g") -> str:
    """One horizontal bar per series, the first on top, its value written beside it, as SVG."""

    def draw(axes: Any) -> None:
        values = [s.points[0][1] for s in series]
        drawn = axes.barh(range(len(series)), values, color=[s.paint for s in series], height=0.62)
        axes.bar_label(drawn, [format(v, format_x) for v in values], padding=3, fontsize=8.5)
        axes.set_yticks(range(len(series)), [s.name for s in series])
        axes.tick_params("y", length=0, labelcolor=INK)
        axes.grid(visible=False, axis="y")
        axes.invert_yaxis()
        if log:
            axes.set_xscale("log")
            axes.xaxis.set_major_formatter(lambda value, _: f"{value:g}")
            axes.set_xlim(
                min(values) / 3, max(values) * 8
            )  # room for the shortest bar, and for text beside the longest
        else:
            axes.set_xlim(0, max([*values, 1e-9]) * 1.18)
        axes.set_xlabel(x)

    return _svg(draw, height=0.85 + 0.27 * len(series))


def _svg(draw: Callable[[Any], None], height: float) -> str:
    """A plot of one pair of axes."""

    def single(figure: Any) -> None:
        axes = figure.subplots()
        draw(axes)
        axes.minorticks_off()

    return drawn(single, height)


def drawn(draw: Callable[[Any], None], height: float) -> str:
    """What ``draw`` puts into a figure of so many inches, as SVG in the page's colours."""
    import matplotlib
    from matplotlib.figure import Figure

    with matplotlib.rc_context(_STYLE):
        figure = Figure(figsize=(4.1, height), layout="constrained")
        draw(figure)
        stream = io.StringIO()
        nothing = dict.fromkeys(("Date", "Creator", "Format", "Type"))
        figure.savefig(stream, format="svg", transparent=True, metadata=nothing)
    svg = stream.getvalue()
    svg = svg[svg.index("<svg") :]  # without the XML and document type declarations, which an HTML page may not hold
    svg = re.sub(
        r'^<svg[^>]*?(viewBox="[^"]*")[^>]*>', r'<svg xmlns:xlink="http://www.w3.org/1999/xlink" \1 role="img">', svg
    )
    for stand_in, variable in _VARIABLES.items():
        svg = svg.replace(stand_in, f"var({variable})")
    return svg


def with_unique_ids(svg: str, prefix: str) -> str:
    """``svg`` whose ids, and references to them, start with ``prefix``: a page must not hold one id twice."""
    return re.sub(r'(\bid="|href="#|url\(#)', rf"\g<1>{prefix}", svg)
