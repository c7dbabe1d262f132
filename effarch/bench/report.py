"""The files of a run: ``report.json``, ``report.csv``, ``report.md`` and one self-contained ``report.html``."""

import csv
import html
import io
import json
import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from effarch.bench.ceilings import CEILINGS
from effarch.bench.fits import crossover, fit
from effarch.bench.run import Row
from effarch.bench.summary import SOFTMAX, Curve, curves, interval, peers_table, reasons, sections, table, title, took
from effarch.eval import plots
from effarch.eval.plots import Series
from effarch.eval.report import as_json, draw, framed, legend, strict, write_files
from effarch.eval.table import Table, context, count, size

FORMAT = 1  # of report.json


def write_report(
    folder: Path,
    rows: Sequence[Row],
    *,
    machine: Mapping[str, Any],
    ceilings: Mapping[str, float],
    accuracy: str | None = None,
) -> Path:
    """Writes the four files, each whole or not at all; returns the path of the page.

    Args:
      folder: of the run. rows: from :func:`effarch.bench.run.measure_all`. machine, ceilings: of this machine.
      accuracy: ``results.jsonl`` of a sweep, for a plot of accuracy against state.
    """
    found, shown = curves(rows), tables(rows, ceilings)
    report = {
        "format": FORMAT,
        "machine": dict(machine),
        "ceilings": dict(ceilings),
        "fits": [_fits(curve) for curve in found],
        "rows": list(rows),
    }
    texts = {
        "report.json": as_json(strict(report)),
        "report.csv": as_csv(rows),
        "report.md": markdown(rows, machine, ceilings, shown),
        "report.html": page(rows, machine, ceilings, shown, accuracy),
    }
    write_files(folder, texts)
    return folder / "report.html"


def _fits(curve: Curve) -> dict[str, Any]:
    def told(values: Mapping[int, float]) -> dict[str, Any] | None:
        found = fit(values)
        if found is None:
            return None
        return {
            "exponent": found.exponent,
            "interval": [found.low, found.high],
            "lengths": found.lengths,
            "per_token": found.per_token,
        }

    about = {"level": curve.level, "mode": curve.mode, "name": curve.name, "target": curve.target or None}
    return about | {"time": told(curve.warm), "memory": told(curve.temporaries)}


FIELDS = (
    *("level", "mode", "name", "peer", "target", "length", "batch_size", "heads", "head_dim", "dim", "dtype"),
    *("median_seconds", "tokens_per_second", "estimated_seconds", "runs", "noise", "compile_seconds"),
    *(
        "argument_bytes",
        "output_bytes",
        "temporary_bytes",
        "resident_bytes",
        "state_bytes",
        "flops",
        "traffic",
        "reason",
    ),
)


def as_csv(rows: Sequence[Row]) -> str:
    """One line per row, measured and estimated seconds in columns of their own."""
    from effarch.bench.measure import spread

    stream = io.StringIO()
    writer = csv.DictWriter(stream, FIELDS, extrasaction="ignore", lineterminator="\n")
    writer.writeheader()
    for row in rows:
        runs, spent = row.get("seconds") or (), took(row)
        writer.writerow(
            row["subject"]
            | {name: row.get(name) for name in FIELDS if name in row}
            | {
                "median_seconds": spent if runs else None,
                "tokens_per_second": row["tokens"] / spent if spent and row.get("tokens") else None,
                "runs": len(runs),
                "noise": spread(runs) if len(runs) > 1 else None,
            }
        )
    return stream.getvalue()


def tables(rows: Sequence[Row], ceilings: Mapping[str, float]) -> dict[str, Table]:
    """Every table of the report by its heading."""
    found = curves(rows)
    told = {title(*about): table(group, ceilings) for about, group in sections(found).items()}
    if (against := peers_table(found)) is not None:
        told["Against other people's code, same shapes, same run"] = against
    return told


def about_machine(machine: Mapping[str, Any], ceilings: Mapping[str, float]) -> str:
    """One paragraph: hardware, versions, date, and what the machine can do at best."""
    names = ("jax", "python", "commit")
    where = machine["processor"] if machine.get("platform") == "cpu" else machine.get("devices")
    versions = ", ".join(f"{name} {machine[name]}" for name in names if machine.get(name))
    best = "; ".join(f"{count(ceilings[name])} {about}" for name, about in CEILINGS.items() if name in ceilings)
    return f"{machine['date']}, {machine['cores']} cores of {where}, {versions}. Measured ceilings: {best or 'none'}."


HOW = (
    "Medians of the runs after a warm-up, fresh random inputs each, results waited for; noise is half the range "
    "between the quartiles. Exponents are fitted from 8k tokens on, or to the larger half of shorter lengths, ± half "
    "of the 95 % interval. Shares say what the useful FLOPs, counted by us, reach at the largest length of this "
    "machine's best large matrix product, and of its products of 64 x 64 matrices in the cache. "
    "Estimates are rooflines of what the compiled program computes and moves; at least, where kernels, or loops of a "
    "length that is decided at run time, hide that."
)


def markdown(
    rows: Sequence[Row], machine: Mapping[str, Any], ceilings: Mapping[str, float], tables: Mapping[str, Table]
) -> str:
    """The report for a README."""
    parts = [f"`{machine['command']}`: {about_machine(machine, ceilings)}", HOW]
    for heading, shown in tables.items():
        parts += [f"## {heading}", shown.markdown()]
    if why := reasons(rows):
        parts += ["## Not measured", "\n".join(f"- {line}" for line in why)]
    return "\n\n".join(parts) + "\n"


def page(
    rows: Sequence[Row],
    machine: Mapping[str, Any],
    ceilings: Mapping[str, float],
    tables: Mapping[str, Table],
    accuracy: str | None = None,
) -> str:
    """The HTML page: no script, nothing from elsewhere."""
    parts = [f'<p class="summary">{html.escape(about_machine(machine, ceilings))} {html.escape(HOW)}</p>']
    for number, (about, group) in enumerate(sections(curves(rows)).items()):
        colors = {curve.name: i for i, curve in enumerate(group)}
        drawings = _drawings(group, colors)
        drawn = draw(drawings, f"s{number}-") if drawings else ""
        body = f'<div class="scroll">{tables[title(*about)].html()}</div>{legend(list(colors))}{drawn}'
        parts.append(f"<section><h2>{html.escape(title(*about))}</h2>{body}</section>")
    for heading, other in tables.items():
        if heading.startswith("Against"):
            parts.append(f'<section><h2>{heading}</h2><div class="scroll">{other.html()}</div></section>')
    if accuracy is not None:
        parts.append(_accuracy(accuracy))
    if why := reasons(rows):
        parts.append(f"<section><h2>Not measured</h2><pre>{html.escape(chr(10).join(why))}</pre></section>")
    return framed({"title": "effarch bench", "run": {k: v for k, v in machine.items() if v}}, parts)


def _drawings(group: Sequence[Curve], colors: Mapping[str, int]) -> dict[str, Callable[[], str]]:
    """Plots of a section: time and memory over T with fitted slopes, or the speed of decoding over its context."""
    mode, estimated = group[0].mode, bool(group[0].target)

    def lines(values: Mapping[str, Mapping[int, float]], y: str, format_y: Any, mark: Any = None) -> str:
        series = [Series(_sloped(n, v, mode), colors[n], tuple(sorted(v.items()))) for n, v in values.items()]
        return plots.lines(
            series, x="tokens T", y=y, log="xy", format_x=context, format_y=format_y, mark=mark, legend=len(series) < 12
        )

    drawings: dict[str, Callable[[], str]] = {}
    if mode == "decode":
        speeds = {c.name: c.speeds for c in group if c.speeds}
        if speeds:
            drawings["Decoding: tokens per second over the context"] = lambda: lines(speeds, "tokens/s", count)
        return drawings
    times = {c.name: c.times for c in group if c.times}
    positive = {
        c.name: {t: size for t, size in c.temporaries.items() if size} for c in group
    }  # the axis is logarithmic
    memory = {name: sizes for name, sizes in positive.items() if sizes}
    if times:
        label = "seconds, estimated" if estimated else "seconds"
        drawings[f"Time ({label})"] = lambda: lines(times, label, lambda s: f"{s:.2g}", _first_crossing(group))
    if memory:
        drawings["Memory (compiled temporaries)"] = lambda: lines(memory, "bytes", size)
    return drawings


def _sloped(name: str, values: Mapping[int, float], mode: str) -> str:
    found = fit(values) if mode != "decode" else None
    return f"{name}: T^{interval(found)}" if found else name


def _first_crossing(group: Sequence[Curve]) -> tuple[float, str] | None:
    """Where the first of the others becomes faster than softmax attention."""
    softmax = next((c for c in group if c.name in SOFTMAX and c.times), None)
    if softmax is None:
        return None
    crossings = [(crossover(c.warm, softmax.warm), c.name) for c in group if not c.baseline and c.times]
    known = [(at, name) for at, name in crossings if at is not None and math.isfinite(at)]
    return (min(known)[0], f"{min(known)[1]} faster than {softmax.name}") if known else None


def _accuracy(path: str) -> str:
    """Accuracy against state bytes, from the records of a sweep."""
    found: dict[str, tuple[float, float]] = {}
    for line in Path(path).read_text(encoding="utf-8").splitlines():
        record = json.loads(line)
        scores = [s for s in (record.get("scores") or {}).values() if isinstance(s, Mapping)]
        if scores and record.get("state_bytes"):
            state, accuracy = max(record["state_bytes"].values()), 100 * scores[0]["accuracy"]
            found[record["name"]] = max(found.get(record["name"], (state, 0.0)), (state, accuracy))
    series = [Series(name, i, (point,)) for i, (name, point) in enumerate(found.items())]

    def plot() -> str:
        return plots.points(series, x="state (bytes per sequence)", y="correct (%)", log=True, format_x=size)

    body = draw({"Accuracy against state": plot}, "accuracy-")
    return f"<section><h2>Accuracy against state</h2>{body}</section>"
