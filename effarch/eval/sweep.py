"""What a sweep over mixers and learning rates found: one table, its page, and the mapping behind both.

    title: str      run: mapping of what was run      tasks: {name of a measurement: tokens in its rows}
    models: list of mappings, one per mixer
        name, transition: str
        parameters: int      seconds: float, of all its learning rates
        state_bytes: {tokens: bytes}
        learning_rates: {rate: {measurement: accuracy 0 to 1, or None}}
        learning_rate: the rate that was best on the first measurement; None if none finished
        notes: list of str; everything that went wrong

The first measurement is of held-out rows of the task that was trained; it alone chooses the learning rate.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from effarch.eval import plots
from effarch.eval.plots import Series
from effarch.eval.report import as_json, draw, framed, legend, strict, write_files
from effarch.eval.table import Column, Table, context, count, percent, size

Record = Mapping[str, Any]


def models_of(records: Iterable[Record], tasks: Mapping[str, int]) -> list[dict[str, Any]]:
    """One model per name in the order of the records, of which there is one per learning rate.

    Args:
      records: ``name``, ``transition``, ``learning_rate``, ``seconds``; of what was measured ``parameters``,
        ``state_bytes`` and ``scores``, {measurement: {accuracy, nats} or why not}; ``failed``: why there is nothing.
      tasks: {measurement: tokens in its rows}; the first chooses.
    """
    grouped: dict[str, list[Record]] = {}
    for record in records:
        grouped.setdefault(record["name"], []).append(record)
    return [_model(name, group, list(tasks)) for name, group in grouped.items()]


def _model(name: str, records: Sequence[Record], tasks: Sequence[str]) -> dict[str, Any]:
    def chosen(record: Record) -> tuple[float, float]:
        score = record["scores"][tasks[0]]
        return (score["accuracy"], -score["nats"])

    finished = [r for r in records if isinstance(r.get("scores", {}).get(tasks[0]), Mapping)]
    best = max(finished, key=chosen) if finished else None
    reasons: dict[str, list[str]] = {}  # what went wrong: at which learning rates
    for record in records:
        scores = record.get("scores") or {}
        said = [f"{task}: {score}" for task, score in scores.items() if isinstance(score, str)]
        said += [record["failed"]] if record.get("failed") else []
        said += [f"{record['skipped']} steps not finite"] if record.get("skipped") else []
        for reason in said:
            reasons.setdefault(reason, []).append(f"{record['learning_rate']:g}")
    return {
        "name": name,
        "transition": records[0].get("transition", ""),
        "parameters": next((r["parameters"] for r in records if "parameters" in r), None),
        "seconds": sum(r["seconds"] for r in records),
        "state_bytes": next((dict(r["state_bytes"]) for r in records if "state_bytes" in r), {}),
        "learning_rates": {f"{r['learning_rate']:g}": _accuracies(r, tasks) for r in records},
        "learning_rate": best and f"{best['learning_rate']:g}",
        "notes": [
            why if len(rates) == len(records) else f"{why} (at {', '.join(rates)})" for why, rates in reasons.items()
        ],
    }


def _accuracies(record: Record, tasks: Sequence[str]) -> dict[str, float | None]:
    scores = record.get("scores") or {}
    return {t: scores[t]["accuracy"] if isinstance(scores.get(t), Mapping) else None for t in tasks}


def sweep_table(models: Sequence[Mapping[str, Any]], tasks: Mapping[str, int]) -> Table:
    """One row per mixer: held-out accuracy by learning rate; then, of the best rate, all other measurements."""
    rates = sorted({rate for model in models for rate in model["learning_rates"]}, key=float)
    first, *others = tasks
    lengths = sorted({str(tokens) for tokens in tasks.values()}, key=int)
    columns = [
        Column("name", "Mixer"),
        *(Column(f"rate {rate}", f"{first}, lr {rate}", "%", percent) for rate in rates),
        Column("learning_rate", "Best lr"),
        *(Column(task, task, "%", percent, "higher") for task in tasks),
        *(Column(f"state {tokens}", f"State at {context(int(tokens))}", "", size) for tokens in lengths),
        Column("parameters", "Parameters", "", count),
        Column("seconds", "Time", "s", ".0f"),
        Column("notes", "Notes", "", "; ".join, align="left"),
    ]
    rows = []
    for model in models:
        best = model["learning_rates"].get(model["learning_rate"], {})
        held_out = {f"rate {rate}": found.get(first) for rate, found in model["learning_rates"].items()}
        states = {f"state {tokens}": n for tokens, n in model["state_bytes"].items()}
        rows.append({**model, **held_out, **best, **states})
    return Table(tuple(columns), tuple(rows)).filled()


def sweep_page(report: Mapping[str, Any]) -> str:
    """The table, and for every measurement a plot of accuracy against state."""
    models, tasks = report["models"], report["tasks"]
    classes = sorted({model["transition"] for model in models})
    table = sweep_table(models, tasks).html()
    drawings: dict[str, Callable[[], str]] = {}
    for task, tokens in tasks.items():
        series = [s for m in models if (s := _point(m, task, str(tokens), classes.index(m["transition"])))]
        if series:
            drawings[f"Accuracy against state: {task}"] = lambda series=series, tokens=tokens: plots.points(
                series, x=f"state at {tokens} tokens (bytes per sequence)", y="correct (%)", log=True, format_x=size
            )
    names = legend([name or "no recurrence" for name in classes])
    return framed(
        report,
        [
            f'<section><h2>Results</h2><div class="scroll">{table}</div></section>',
            f"<section><h2>Plots</h2>{names}{draw(drawings)}</section>",
        ],
    )


def _point(model: Mapping[str, Any], task: str, tokens: str, color: int) -> Series | None:
    accuracy = model["learning_rates"].get(model["learning_rate"], {}).get(task)
    state = model["state_bytes"].get(tokens)
    return Series(model["name"], color, ((state, 100 * accuracy),)) if state and accuracy is not None else None


def write_sweep(folder: str | Path, report: Mapping[str, Any]) -> Path:
    """Writes ``report.json``, ``report.md`` and ``report.html`` into ``folder``; returns the page's path."""
    report = strict(report)
    table = sweep_table(report["models"], report["tasks"])
    facts = "".join(f"- {key}: {value}\n" for key, value in (report.get("run") or {}).items())
    texts = {
        "report.json": as_json(report),
        "report.md": f"# {report['title']}\n\n{table.markdown()}\n\n{facts}",
        "report.html": sweep_page(report),
    }
    write_files(folder, texts)
    return Path(folder) / "report.html"
