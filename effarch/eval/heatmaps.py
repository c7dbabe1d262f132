"""Maps of shares over two things, one for each model: recall by length and depth."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from effarch.eval.plots import MUTED, drawn, paint

_SMALL = 6.5  # points


@dataclass(frozen=True)
class Panel:
    """One map of shares over two things.

    Args:
        name: its title.
        color: 0 to 7, as of :class:`Series`.
        columns: labels from left to right.
        rows: labels from top to bottom.
        values: ``[rows][columns]``, each in 0 to 1 or None.
    """

    name: str
    color: int
    columns: tuple[str, ...]
    rows: tuple[str, ...]
    values: tuple[tuple[float | None, ...], ...]


def heatmaps(panels: Sequence[Panel], *, x: str, y: str) -> str:
    """Maps of shares in 0 to 1, two beside each other, as SVG: the darker the more; per cent in each cell.

    Args:
        panels: the maps. x: label of the columns. y: label of the rows.
    """

    def draw(figure: Any) -> None:
        grid = figure.subplots(-(-len(panels) // 2), 2, squeeze=False)
        for axes in grid.reshape(-1)[len(panels) :]:
            axes.set_axis_off()
        for axes, panel in zip(grid.reshape(-1), panels, strict=False):
            for i, row in enumerate(panel.values):
                for j, value in enumerate(row):
                    if value is None:
                        continue
                    # the page's colour, more or less of it: one that a dark page changes
                    axes.bar(j, 1, 0.94, i - 0.5, color=paint(panel.color), alpha=0.06 + 0.7 * value)
                    axes.text(j, i, f"{100 * value:.0f}", ha="center", va="center", fontsize=_SMALL)
            axes.set_title(panel.name, fontsize=_SMALL + 1)
            axes.set_xticks(range(len(panel.columns)), panel.columns)
            axes.set_yticks(range(len(panel.rows)), panel.rows)
            axes.set_ylim(len(panel.rows) - 0.5, -0.5)
            axes.grid(visible=False)
            axes.tick_params(length=0, labelsize=_SMALL)
            axes.spines[:].set_visible(False)
        figure.supxlabel(x, fontsize=8.5, color=MUTED)
        figure.supylabel(y, fontsize=8.5, color=MUTED)

    tallest = max(len(panel.rows) for panel in panels)
    return drawn(draw, 0.4 + -(-len(panels) // 2) * (0.45 + 0.19 * tallest))
