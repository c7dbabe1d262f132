"""Everything that is measured of one model: its scores, what it costs; and ``effarch evaluate``."""

import json
from pathlib import Path
from typing import Any

import pydantic

from effarch.bench.decode import decode_speeds
from effarch.bench.fits import break_even
from effarch.config import Config, UserError
from effarch.data.prepare import DataConfig, prepare
from effarch.data.token_file import load_tokenizer
from effarch.eval.config import EvalConfig
from effarch.eval.report import costs_table, results_table, strict
from effarch.eval.settings import data_of, settings_of, teacher_of
from effarch.eval.suite import Suite
from effarch.hub.convert import load_any
from effarch.hub.locate import locate
from effarch.models.lm import LM, LMConfig, parameter_count
from effarch.training.run import versions, write_atomic

STATES = (1024, 16384, 2**20)  # tokens of context that states are sized at
FILE = "evaluation.json"
_OTHERWISE: dict[str, Any] = {"seq_len": 512, "batch_size": 8, "cache_dir": "runs/data"}  # where no run says it


class EvaluateConfig(Config):
    """What to evaluate, on what, and how much of it."""

    run: str = pydantic.Field(description="folder of a run or of a checkpoint; or a name of the hub")
    teacher: str | None = pydantic.Field(
        None,
        description="folder of the model that KL and agreement are measured against; null: the run's, if any",
    )
    data: DataConfig | None = pydantic.Field(None, description="null: what the run was trained on")
    seq_len: int | None = pydantic.Field(None, gt=1, description="tokens per row of validation text; null: the run's")
    batch_size: int | None = pydantic.Field(None, gt=0, description="rows at a time; null: the run's")
    cache_dir: str | None = pydantic.Field(None, description="folder of prepared data; null: the run's")
    output: str | None = pydantic.Field(None, description=f"file of the scores; null: {FILE} in the folder")
    eval: EvalConfig = EvalConfig()


def measured(lm: LM, suite: Suite, contexts: tuple[int, ...], teacher: LMConfig | None = None) -> dict[str, Any]:
    """The row of a model in a report (:mod:`effarch.eval.report`), but for its name.

    Args:
      lm: the model. suite: what it is scored on. contexts: tokens of context that decoding is timed at.
      teacher: whose KV cache its state is compared with; None: there is none, or it is the model itself.
    """
    found = suite.scores(lm) | {
        "parameters": parameter_count(lm),
        "state_bytes": {context: lm.config.state_bytes(context) for context in STATES},
        "decode_tokens_per_s": decode_speeds(lm, contexts) if contexts else {},
    }
    if teacher is not None:
        found["break_even"] = break_even(lm.config.state_bytes, teacher.state_bytes)
    return found


def evaluate(config: EvaluateConfig) -> int:
    """``effarch evaluate RUN``: scores the model of a run or a checkpoint; prints the tables and writes the JSON."""
    folder = locate(config.run)
    lm, tokenizer = load_any(folder), load_tokenizer(folder)
    file = folder / "config.yaml"
    there = settings_of(file) if file.exists() else {}  # a checkpoint has none
    theirs = locate(config.teacher) if config.teacher else teacher_of(folder, there) if "teacher" in there else None
    teacher = load_any(theirs) if theirs else None
    if theirs and (difference := tokenizer.difference(load_tokenizer(theirs))):
        raise UserError(f"teacher: expected the tokens of {folder}, got those of {theirs}: {difference}")
    if not (config.data or there):
        raise UserError(f"data: expected the text to evaluate on (data.source=...), for {folder} is no run's folder")
    data = config.data or data_of(file, there)
    seq_len, batch_size, cache_dir = (getattr(config, key) or there.get(key, x) for key, x in _OTHERWISE.items())
    prepared = prepare(data, seq_len, cache_dir, tokenizer=tokenizer)
    suite = Suite(prepared, config.eval, batch_size, teacher)
    row = {"name": str(folder)} | measured(lm, suite, config.eval.contexts, None if teacher is None else teacher.config)
    report = strict(
        {
            "run": {
                "model": folder,
                "teacher": theirs,
                "versions": versions(),
                "corpus": data.source.type_name,
                "corpus digest": prepared.meta["inputs"]["digest"],
                "eval": config.eval.model_dump(mode="json"),
            },
            "notes": suite.notes,
            "models": [row],
        }
    )
    path = Path(config.output) if config.output else folder / FILE
    write_atomic(path, json.dumps(report, indent=2, allow_nan=False) + "\n")
    for table in (results_table, costs_table):
        print(table([strict(row)]).plain(width=120), end="\n\n")
    for note in suite.notes:
        print(f"note: {note}")
    print(f"scores: {path}")
    return 0
