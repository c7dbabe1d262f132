"""What a comparison of distillation recipes found: one table, its page, and the mapping behind both.

    title: str      run: mapping of what was run
    results: list of mappings, one per run
        recipe, student: str      seed: int
        report: of the run (:mod:`effarch.eval.report`); or failed: str, why there is none

Rows are means over seeds; of what stands in every run alike (the teacher, its window) over all runs.
"""

import statistics
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from effarch.eval import plots
from effarch.eval.plots import Series
from effarch.eval.report import as_json, draw, framed, strict, write_files
from effarch.eval.table import Column, Table, count, duration, percent

TEACHER, CONVERTED, SCRATCH = "teacher", "student, converted", "student, from scratch"
_MEANS = ("bits_per_byte", "kl_bits", "agreement", "recall_within", "recall_beyond", "needle_mean", "mqar_mean")


def rows_of(results: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """The rows of the table: teacher, its window, every student from scratch, every recipe with every student."""
    groups: dict[tuple[str, str], list[dict[str, Any]]] = {}
    for result in results:
        about = (result["student"], result["recipe"])
        if "failed" in result:
            groups.setdefault(about, []).append({"seed": result["seed"], "notes": result["failed"]})
            continue
        models = {model["name"]: model for model in result["report"]["models"]}
        teacher, converted = models[TEACHER], models[CONVERTED]
        for name, model in models.items():
            if name == TEACHER or name.startswith("teacher, "):
                groups.setdefault((name, ""), []).append(_scores(model, teacher))
            elif name == SCRATCH:
                groups.setdefault((result["student"], "from scratch"), []).append(_scores(model, teacher))
        last = [model for name, model in models.items() if name not in (SCRATCH, CONVERTED)][-1]
        stages = [m for name, m in models.items() if name.startswith("student, after ")]
        trained = {key: sum(stage.get(key) or 0 for stage in stages) for key in ("tokens", "seconds")}
        groups.setdefault(about, []).append(
            _scores(last, teacher)
            | trained
            | {
                "seed": result["seed"],
                "converted": converted["kl_bits"],
                "closed": 1 - last["kl_bits"] / converted["kl_bits"] if converted["kl_bits"] else None,
            }
        )
    return [_mean(student, recipe, group) for (student, recipe), group in groups.items()]


def _scores(model: Mapping[str, Any], teacher: Mapping[str, Any]) -> dict[str, Any]:
    found = {key: model[key] for key in (*_MEANS, "tokens", "seconds") if model.get(key) is not None}
    if model.get("recall_beyond") is not None and teacher.get("recall_beyond"):
        found["of_teacher"] = model["recall_beyond"] / teacher["recall_beyond"]
    return found


def _mean(student: str, recipe: str, group: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    keys = dict.fromkeys(key for each in group for key in each if key not in ("seed", "notes"))
    row: dict[str, Any] = {"name": f"{student}, {recipe}" if recipe else student, "student": student, "recipe": recipe}
    for key in keys:
        values = [each[key] for each in group if each.get(key) is not None]
        row[key] = statistics.fmean(values) if values else None
    kl = [each["kl_bits"] for each in group if each.get("kl_bits") is not None]
    row["spread"] = (max(kl) - min(kl)) / 2 if len(kl) > 1 else None
    row["seeds"] = len({each["seed"] for each in group if "seed" in each and "notes" not in each}) or None
    row["notes"] = "; ".join(dict.fromkeys(each["notes"] for each in group if each.get("notes"))) or None
    return row


def recipes_table(rows: Sequence[Mapping[str, Any]]) -> Table:
    """One row per recipe and student, means over seeds."""
    columns = (
        Column("name", "Model"),
        Column("seeds", "Seeds"),
        Column("converted", "KL converted", "bits/token", ".3f"),
        Column("kl_bits", "KL to teacher", "bits/token", ".4f", "lower"),
        Column("spread", "±", "bits/token", ".4f"),
        Column("closed", "Gap closed", "%", percent, "higher"),
        Column("agreement", "Agreement", "%", percent, "higher"),
        Column("bits_per_byte", "Validation", "bits/byte", ".3f", "lower"),
        Column("recall_within", "Recall within", "%", percent, "higher"),
        Column("recall_beyond", "Recall beyond", "%", percent, "higher"),
        Column("of_teacher", "of the teacher's", "%", percent, "higher"),
        Column("needle_mean", "Needle", "%", percent, "higher"),
        Column("mqar_mean", "MQAR", "%", percent, "higher"),
        Column("tokens", "Trained on", "tokens", count),
        Column("seconds", "Time", "", duration),
        Column("notes", "Notes", align="left"),
    )
    references = frozenset(row["name"] for row in rows if row["name"].startswith(TEACHER))
    return Table(columns, tuple(rows), references).filled()


def write_recipes(folder: str | Path, report: Mapping[str, Any]) -> tuple[Path, Table]:
    """Writes ``report.json``, ``report.md`` and ``report.html`` into ``folder``; returns the page's path, the table."""
    report = strict(report)
    rows = rows_of(report["results"])
    table = recipes_table(rows)
    drawings: dict[str, Callable[[], str]] = {}
    recipes = list(dict.fromkeys(row["recipe"] for row in rows if row["recipe"]))
    points = [
        Series(row["name"], recipes.index(row["recipe"]), ((row["kl_bits"], 100 * row["recall_beyond"]),))
        for row in rows
        if row["recipe"] and row.get("kl_bits") and row.get("recall_beyond") is not None
    ]
    if points:
        drawings["Recall beyond the window against KL to the teacher"] = lambda: plots.points(
            points, x="KL to the teacher (bits per token)", y="correct (%)", log=True, format_x=lambda x: f"{x:.2g}"
        )
    facts = "".join(f"- {key}: {value}\n" for key, value in (report.get("run") or {}).items())
    sections = [f'<section><h2>Results</h2><div class="scroll">{table.html()}</div></section>']
    sections += [f"<section><h2>Plots</h2>{draw(drawings)}</section>"] if drawings else []
    texts = {
        "report.json": as_json({**report, "rows": rows}),
        "report.md": f"# {report['title']}\n\n{table.markdown()}\n\n{facts}",
        "report.html": framed(report, sections),
    }
    write_files(folder, texts)
    return Path(folder) / "report.html", table
