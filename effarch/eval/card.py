"""The model card of an exported student: its README.md, with the front matter that the Hugging Face hub reads."""

from collections.abc import Mapping
from typing import Any

import yaml

from effarch.eval.report import costs_table, results_table
from effarch.eval.table import Table, duration

# key of a model's row -> what the hub shows it as
_METRICS = {
    "bits_per_byte": "Bits per byte of validation text",
    "kl_bits": "KL to the teacher, bits per token",
    "agreement": "Top-1 agreement with the teacher",
    "recall_beyond": "Recall beyond the window",
    "needle_mean": "Needle in a haystack",
    "mqar_mean": "MQAR in context",
}
_LOAD = """\
`config.json` names the format: `"model_type": "effarch"` is effarch's own, any other the library's that has it.

```sh
effarch generate FOLDER prompt="..."
```

```python
from effarch import hub

lm = hub.load_lm("FOLDER")
```"""


def model_card(report: Mapping[str, Any]) -> str:
    """Markdown with YAML front matter, of the ``student`` of a report.

    Args:
        report: as :mod:`effarch.eval.report` describes it. Further keys, all optional, under ``card``:
            name: str; of the model, default the report's ``title``
            base_model: str; name of the teacher on the hub
            license: str; as the hub spells it (``apache-2.0``)
            tags: list of str; the mixer, say
            task: str; as the hub calls it, default text-generation
            load: str; Markdown that says how to load it, default the commands that read any exported folder

    Raises:
        ValueError: a report without models, or a model without a name.
    """
    models = report.get("models") or []
    if not models:
        raise ValueError("report.models: expected at least one model, got none")
    card = report.get("card") or {}
    model = next((m for m in models if m["name"] == report.get("student")), models[-1])
    name = card.get("name") or report.get("title") or model["name"]
    run = report.get("run") or {}
    parts = [_front_matter(name, card, run, model), f"# {name}", report.get("summary") or ""]
    parts += _section("How to load it", card.get("load") or _LOAD)
    stages = [m for m in models if m.get("tokens")]
    if stages:
        rows = [f"{i}. {m['name']}: {_trained(m)}" for i, m in enumerate(stages, start=1)]
        parts += _section("Stages", "\n".join(rows))
    parts += _section("Results", _markdown(results_table(models)))
    parts += _section("Decoding", _markdown(costs_table(models)))
    parts += _section("Remarks", "\n".join(f"- {note}" for note in report.get("notes") or ()))
    facts = [f"- {key.replace('_', ' ')}: {_flat(value)}" for key, value in run.items()]
    parts += _section("What was run", "\n".join(facts))
    return "\n\n".join(part for part in parts if part) + "\n"


def _front_matter(name: str, card: Mapping[str, Any], run: Mapping[str, Any], model: Mapping[str, Any]) -> str:
    known = {key: title for key, title in _METRICS.items() if model.get(key) is not None}
    metrics = [{"type": key, "name": title, "value": model[key]} for key, title in known.items()]
    corpus = str(run.get("corpus") or "validation text")
    result = {
        "task": {"type": card.get("task") or "text-generation"},
        "dataset": {"type": corpus, "name": corpus},
        "metrics": metrics,
    }
    fields = {
        "base_model": card.get("base_model"),
        "license": card.get("license"),
        "pipeline_tag": "text-generation",
        "tags": ["effarch", "distillation", *(card.get("tags") or ())],
        "model-index": [{"name": name, "results": [result]}] if metrics else None,
    }
    given = {key: value for key, value in fields.items() if value is not None}
    return f"---\n{yaml.safe_dump(given, sort_keys=False, allow_unicode=True)}---"


def _trained(model: Mapping[str, Any]) -> str:
    seconds = model.get("seconds")
    return f"{model['tokens']:,} tokens" + (f", {duration(seconds)}" if seconds is not None else "")


def _section(title: str, text: str) -> list[str]:
    return [f"## {title}", text] if text else []


def _markdown(table: Table) -> str:
    """A table that has more than names."""
    return table.markdown() if len(table.columns) > 1 else ""


def _flat(value: Any) -> str:
    if isinstance(value, Mapping):
        return ", ".join(f"{key} {_flat(item)}" for key, item in value.items())
    return ", ".join(map(str, value)) if isinstance(value, list | tuple) else str(value)
