"""Which plots a report gets: one for each section of :mod:`effarch.eval.report`'s mapping that is there."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from effarch.eval import plots
from effarch.eval.heatmaps import Panel, heatmaps
from effarch.eval.plots import Series
from effarch.eval.table import context, count, size

Models = Sequence[Mapping[str, Any]]


def figures(report: Mapping[str, Any]) -> dict[str, Callable[[], str]]:
    """Caption -> a function that draws the plot as SVG."""
    models: Models = report.get("models") or []
    made: dict[str, Callable[[], str]] = {}

    bits = _bars(models, "bits_per_byte")
    if bits:
        made["Validation text"] = lambda: plots.bars(bits, x="bits per byte (lower is better)", format_x=".3f")
    kl = [s for s in _bars(models, "kl_bits") if s.points[0][1] > 0]  # the teacher's own 0 has no place on a log scale
    if kl:
        made["KL to the teacher"] = lambda: plots.bars(kl, x="bits per token (log scale)", log=True)
    perplexity = _lines(models, "perplexity_by_position")
    if perplexity:
        made["Perplexity over position"] = lambda: plots.lines(
            perplexity,
            x="position in the text (tokens, up to)",
            y="perplexity",
            log="xy",
            ticks=dict(list(_ticks(perplexity).items())[::-2]),  # all would run into each other
            format_y=lambda value: f"{value:g}",
        )
    recall = _lines(models, "recall_by_distance", scale=100)
    if recall:
        window = report.get("window")
        made["Recall against distance"] = lambda: plots.lines(
            recall,
            x="distance to the answer (tokens)",
            y="correct (%)",
            log="x",
            ticks=_ticks(recall),
            limits=(-3, 103),
            mark=(window, f"window {window}") if window else None,
        )
    for task, what in (("needle", "Needle: one fact planted in text"), ("mqar", "MQAR: several facts planted in text")):
        panels = _panels(models, task)
        if panels:
            made[what] = lambda panels=panels: heatmaps(panels, x="length (tokens)", y="depth")
    speed = _lines(models, "decode_tokens_per_s")
    if speed:
        made["Decoding speed against context"] = lambda: plots.lines(
            speed, x="context (tokens)", y="tokens per second", log="x", ticks=_ticks(speed), limits=(0, None)
        )
    state = [s for s in _lines(models, "state_bytes") if all(y > 0 for _, y in s.points)]
    if state:
        made["Decoding state against context"] = lambda: plots.lines(
            state, x="context (tokens)", y="bytes per sequence", log="xy", ticks=_ticks(state), format_y=size
        )
    return made | _curves(report.get("curves") or [], [model["name"] for model in models])


def _curves(phases: Sequence[Mapping[str, Any]], names: Sequence[str]) -> dict[str, Callable[[], str]]:
    """One plot per metric; phases that are no model take the colours after the models'."""
    metrics: dict[str, list[Series]] = {}
    colors = [*names, *(phase["phase"] for phase in phases if phase["phase"] not in names)]
    for phase in phases:
        points = sorted(
            (r["tokens"], r["loss"]) for r in phase.get("rows") or () if None not in (r.get("tokens"), r.get("loss"))
        )
        if points:
            name = phase["phase"]
            metrics.setdefault(phase.get("metric") or "loss", []).append(
                Series(name, colors.index(name), tuple(points))
            )

    def draw(metric: str, series: list[Series]) -> Callable[[], str]:
        few = min(len(s.points) for s in series) < 3
        return lambda: plots.lines(
            series, x="tokens seen", y=metric, format_x=count, markers=few, legend=len(series) > 1
        )

    return {f"Training: {', '.join(s.name for s in series)}": draw(name, series) for name, series in metrics.items()}


def _bars(models: Models, key: str) -> list[Series]:
    return [Series(m["name"], i, ((0, m[key]),)) for i, m in enumerate(models) if m.get(key) is not None]


def _lines(models: Models, key: str, scale: float = 1) -> list[Series]:
    made = []
    for i, model in enumerate(models):
        points = sorted((int(x), scale * y) for x, y in (model.get(key) or {}).items() if y is not None)
        if points:
            made.append(Series(model["name"], i, tuple(points)))
    return made


def _panels(models: Models, key: str) -> list[Panel]:
    """A map per model: lengths to the right, depths downwards."""
    made = []
    for i, model in enumerate(models):
        cells = model.get(key) or {}
        lengths = sorted(cells, key=int)
        depths = sorted({depth for by_depth in cells.values() for depth in by_depth}, key=float)
        if depths:
            values = tuple(tuple(cells[length].get(depth) for length in lengths) for depth in depths)
            made.append(Panel(model["name"], i, tuple(context(int(x)) for x in lengths), tuple(depths), values))
    return made


def _ticks(series: Sequence[Series]) -> dict[float, str]:
    return {x: context(x) for x in sorted({x for s in series for x, _ in s.points})}
