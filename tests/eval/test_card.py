"""The model card: front matter that is YAML, of the student; tables and stages that are Markdown."""

import pytest
import yaml

from effarch.eval.card import model_card
from effarch.eval.report import strict

MODELS = [
    {"name": "teacher", "reference": True, "bits_per_byte": 2.0, "kl_bits": 0.0, "tokens": 4096, "seconds": 3.0},
    {"name": "student, converted", "bits_per_byte": 5.0, "kl_bits": 3.0, "tokens": 0},
    {
        "name": "student, after logits",
        "bits_per_byte": 2.125,
        "kl_bits": 0.25,
        "agreement": 0.75,
        "needle_mean": None,
        "tokens": 1024,
        "seconds": 65.0,
        "state_bytes": {1024: 2**17},
        "break_even": 77,
    },
    {"name": "student, from scratch", "bits_per_byte": 3.0, "kl_bits": 1.0},
]
REPORT = {
    "title": 'a "student": of {b}',
    "summary": "It is close.",
    "student": "student, after logits",
    "models": MODELS,
    "notes": ["eval.lengths: less text than asked"],
    "run": {"command": "python -m x", "versions": {"jax": "1.2"}, "corpus": "python_stdlib"},
    "card": {"base_model": "some/teacher", "license": "apache-2.0", "tags": ["retnet"], "load": "Like this: `load()`."},
}


def front_matter(card: str) -> dict:
    begin, matter, _ = card.split("---\n", 2)
    assert not begin
    return yaml.safe_load(matter)


def test_a_card_says_what_the_report_says():
    card = model_card(strict(REPORT))
    matter = front_matter(card)
    assert (matter["base_model"], matter["license"]) == ("some/teacher", "apache-2.0")
    assert "retnet" in matter["tags"] and matter["pipeline_tag"] == "text-generation"
    ((entry,), name) = matter["model-index"][0]["results"], matter["model-index"][0]["name"]
    assert name == REPORT["title"] and entry["dataset"]["name"] == "python_stdlib"
    assert {m["type"]: m["value"] for m in entry["metrics"]} == {
        "bits_per_byte": 2.125,
        "kl_bits": 0.25,
        "agreement": 0.75,
    }
    lines = card.splitlines()
    assert f"# {REPORT['title']}" in lines and "It is close." in lines and "Like this: `load()`." in lines
    assert "2. student, after logits: 1,024 tokens, 1 min 05 s" in lines and "1. teacher: 4,096 tokens, 3.0 s" in lines
    assert "- eval.lengths: less text than asked" in lines and "- versions: jax 1.2" in lines
    (row,) = [line for line in lines if line.startswith("| student, after logits") and "2.125" in line]
    assert "0.2500" in row and "75.0" in row
    assert any("77" in line and "128 KiB" in line for line in lines)


def test_what_is_not_known_is_left_out():
    card = model_card({"models": [{"name": "a"}]})
    assert front_matter(card) == {"pipeline_tag": "text-generation", "tags": ["effarch", "distillation"]}
    headings = [line for line in card.splitlines() if line.startswith("#")]
    assert headings == ["# a", "## How to load it"] and "effarch generate" in card
    with pytest.raises(ValueError, match="models: expected at least one model, got none"):
        model_card({"title": "a"})
