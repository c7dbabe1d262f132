"""A run's ``report.json`` and ``report.html``: what was run, the table of results, plots, and a sample.

The report is a mapping; every key is optional but ``models``' ``name``, and what is missing is left out of the page:

    title: str
    summary: str, one paragraph
    run: mapping of what was run (command, versions, machine, corpus ...); values may be mappings
    window: int, tokens that the teacher's window reaches; marked in the plot of recall
    models: list of mappings
        name: str
        reference: bool; the row does not compete for the best value
        accuracy, validation_accuracy: float in 0 to 1; share of the test and validation rows whose class is found
        masked_accuracy: float in 0 to 1; share of hidden tokens of validation text that are found
        masked_bits: float; cross-entropy of a hidden token, bits
        tokens: int; seen in training, by a stage's model in this stage alone
        seconds: float; wall time of that training, compiling included
        bits_per_byte, kl_bits: float; validation text, and KL(teacher || model) in bits per token
        agreement: float in 0 to 1; share of the tokens whose likeliest one is the teacher's too
        perplexity: {length: of the second half of rows of this length}
        perplexity_by_position: {end: of the positions up to it, from the end before}
        recall_within, recall_beyond: float in 0 to 1; accuracy at distances within and beyond the window
        recall_by_distance: {distance in tokens: accuracy in 0 to 1}
        recall_by_kind: {kind of row: {within: accuracy, beyond: accuracy}}
        needle, mqar: {length: {depth in 0 to 1: accuracy}}, a fact or several planted in real text
        needle_mean, mqar_mean: float in 0 to 1; over all lengths and depths
        parameters: int
        state_bytes: {tokens of context: bytes of decoding state per sequence}
        break_even: tokens of context from which the state is no larger than the teacher's KV cache; None: never
        decode_tokens_per_s: {tokens of context: tokens per second}
    student: str; name of the model that the run is about, default the last
    card: mapping; see :func:`effarch.eval.card.model_card`
    curves: list of mappings; phases with the same metric share a plot
        phase: str; takes the colour of the model with that name, where there is one
        metric: str, what the loss is, with its unit
        rows: list of mappings as in metrics.jsonl; those with ``tokens`` (seen in this phase) and ``loss`` are drawn
    notes: list of str; what could not be measured as asked, and why
    sample: {prompt: str, text: str}

``report.json`` holds the same mapping as strict JSON: keys are strings, NaN and infinities are null, and characters
that no page can show (controls, lone surrogates) are U+FFFD.
"""

import html
import json
import math
import os
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from effarch.eval import plots
from effarch.eval.figures import figures
from effarch.eval.page import PAGE
from effarch.eval.table import Column, Table, context, count, duration, percent, size


def write_report(folder: str | Path, report: Mapping[str, Any]) -> Path:
    """Writes ``report.json`` and ``report.html`` into ``folder``, each whole or not at all; returns the page's path.

    Args:
        folder: created where it does not exist.
        report: see the module's docstring. Numbers may be numpy's or JAX's.

    Raises:
        ValueError: a value that JSON cannot hold, or a model without a name.
    """
    report = strict(report)
    write_files(folder, {"report.json": as_json(report), "report.html": page(report)})
    return Path(folder) / "report.html"


def as_json(report: Any) -> str:
    """What :func:`strict` returned, as a file holds it."""
    return json.dumps(report, indent=2, allow_nan=False) + "\n"


def write_files(folder: str | Path, texts: Mapping[str, str]) -> None:
    """Writes ``{name: text}``, each whole or not at all; the folder is created where it does not exist."""
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    for name, text in texts.items():
        temporary = folder / f".{name}.tmp"
        temporary.write_text(text, encoding="utf-8")
        os.replace(temporary, folder / name)


_UNPRINTABLE = re.compile(
    r"[^\t\n\r -\x7e\xa0-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]"
)  # a byte model samples anything


def strict(value: Any, where: str = "report") -> Any:
    """``value`` as strict JSON holds it: mappings with string keys, lists, text, finite numbers, None.

    Raises:
        ValueError: anything else, with its place.
    """
    if value is None or isinstance(value, bool | int):
        return value
    if isinstance(value, str):
        return _UNPRINTABLE.sub("\N{REPLACEMENT CHARACTER}", value)
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {str(key): strict(item, f"{where}.{key}") for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [strict(item, f"{where}.{i}") for i, item in enumerate(value)]
    if isinstance(value, Path):
        return str(value)
    if hasattr(value, "tolist"):  # numpy and JAX, scalars and arrays
        return strict(value.tolist(), where)
    raise ValueError(f"{where}: expected text, a number, a list or a mapping, got {type(value).__name__}")


def results_table(models: Sequence[Mapping[str, Any]]) -> Table:
    """The table of results: one row per model, and a column for each score that any of them has.

    Raises:
        ValueError: a model without a name.
    """
    lengths, kinds = _keys(models, "perplexity"), sorted({k for m in models for k in m.get("recall_by_kind") or ()})
    return _table(
        models,
        Column("accuracy", "Test accuracy", "%", percent, "higher"),
        Column("validation_accuracy", "Validation accuracy", "%", percent, "higher"),
        Column("masked_accuracy", "Hidden tokens found", "%", percent, "higher"),
        Column("masked_bits", "Hidden tokens", "bits/token", ".3f", "lower"),
        Column("parameters", "Parameters", "", count),
        Column("tokens", "Trained on", "tokens", count),
        Column("seconds", "Time", "", duration),
        Column("bits_per_byte", "Validation", "bits/byte", ".3f", "lower"),
        Column("kl_bits", "KL to teacher", "bits/token", ".4f", "lower"),
        Column("agreement", "Agreement", "%", percent, "higher"),
        *(Column(f"perplexity.{t}", f"Perplexity at {context(t)}", "", ".2f", "lower") for t in lengths),
        Column("recall_within", "Recall within", "%", percent, "higher"),
        Column("recall_beyond", "Recall beyond", "%", percent, "higher"),
        *(Column(f"recall_by_kind.{k}", f"Beyond: {k}", "%", percent, "higher") for k in kinds),
        Column("needle_mean", "Needle", "%", percent, "higher"),
        Column("mqar_mean", "MQAR", "%", percent, "higher"),
    )


def costs_table(models: Sequence[Mapping[str, Any]]) -> Table:
    """What decoding costs: one row per model, and a column for each cost that any of them has.

    Raises:
        ValueError: a model without a name.
    """
    speed = "decode_tokens_per_s"
    return _table(
        models,
        *(Column(f"state_bytes.{t}", f"State at {context(t)}", "", size) for t in _keys(models, "state_bytes")),
        Column("break_even", "Break-even", "tokens", ".0f", "lower"),
        *(Column(f"{speed}.{t}", f"Decode at {context(t)}", "tokens/s", ".0f") for t in _keys(models, speed)),
    )


def _table(models: Sequence[Mapping[str, Any]], *columns: Column) -> Table:
    """Rows of models; what maps a length to a number becomes ``key.length``, and a kind's recall is that beyond."""
    for i, model in enumerate(models):
        if not isinstance(model.get("name"), str):
            raise ValueError(f"models.{i}.name: expected text, got {model.get('name')!r}")
    rows = []
    for model in models:
        nested = {f"{k}.{t}": x for k, v in model.items() if isinstance(v, Mapping) for t, x in v.items()}
        nested |= {k: x.get("beyond") for k, x in nested.items() if isinstance(x, Mapping)}
        rows.append({**model, **nested})
    references = frozenset(m["name"] for m in models if m.get("reference"))
    return Table((Column("name", "Model"), *columns), tuple(rows), references).filled()


def _keys(models: Sequence[Mapping[str, Any]], key: str) -> list[int]:
    return sorted({int(t) for model in models for t in model.get(key) or ()})


def page(report: Mapping[str, Any]) -> str:
    """The page of a report that :func:`strict` has seen: no script, nothing from elsewhere."""
    models, sections = report.get("models") or [], []
    if report.get("summary"):
        sections.append(f'<p class="summary">{html.escape(report["summary"])}</p>')
    if models:
        for title, table in (("Results", results_table(models)), ("Decoding", costs_table(models))):
            if len(table.columns) > 1:
                sections.append(f'<section><h2>{title}</h2><div class="scroll">{table.html()}</div></section>')
    if report.get("notes"):
        notes = "".join(f"<li>{html.escape(note)}</li>" for note in report["notes"])
        sections.append(f'<ul class="notes">{notes}</ul>')
    drawings = figures(report)
    if drawings:
        sections.append(
            f"<section><h2>Plots</h2>{legend([model['name'] for model in models])}{draw(drawings)}</section>"
        )
    sample = report.get("sample") or {}
    if sample.get("text"):
        prompt, text = html.escape(sample.get("prompt") or ""), html.escape(sample["text"])
        sections.append(f'<section><h2>Sample</h2><pre><span class="prompt">{prompt}</span>{text}</pre></section>')
    return framed(report, sections)


def framed(report: Mapping[str, Any], sections: Sequence[str]) -> str:
    """A page of HTML sections under the report's ``title``, what was ``run`` below them."""
    run = report.get("run")
    last = [f'<section><h2>What was run</h2><dl class="run">{_facts(run)}</dl></section>'] if run else []
    head, tail = PAGE.split("{sections}")
    return head.replace("{title}", html.escape(report.get("title") or "Report")) + "\n".join([*sections, *last]) + tail


def legend(names: Sequence[str]) -> str:
    """The names of the page's colours, in their order."""
    items = (
        f'<li><i style="background:var(--c{i % plots.COLORS})"></i>{html.escape(name)}</li>'
        for i, name in enumerate(names)
    )
    return f'<ul class="legend">{"".join(items)}</ul>' if names else ""


def _facts(facts: Mapping[str, Any]) -> str:
    parts = []
    for key, value in facts.items():
        if isinstance(value, Mapping):
            shown = f"<dl>{_facts(value)}</dl>"
        else:
            shown = html.escape(", ".join(map(str, value)) if isinstance(value, list) else str(value))
        parts.append(f"<dt>{html.escape(str(key).replace('_', ' '))}</dt><dd>{shown}</dd>")
    return "".join(parts)


def draw(drawings: Mapping[str, Callable[[], str]], prefix: str = "") -> str:
    """Figures: caption -> a function that draws the plot as SVG; ``prefix`` tells one group of a page from another."""
    drawn = []
    for i, (caption, plot) in enumerate(drawings.items()):
        svg = plots.with_unique_ids(plot(), f"{prefix}p{i}-")
        drawn.append(f"<figure><figcaption>{html.escape(caption)}</figcaption>{svg}</figure>")
    return f'<div class="plots">{"".join(drawn)}</div>'
