"""``effarch select-layers RUN keep=N``: which layers of a student should have kept the teacher's attention."""

import json
from pathlib import Path
from typing import Any

import pydantic

from effarch.config import Config, UserError
from effarch.data.prepare import Prepared, prepare
from effarch.data.token_file import load_tokenizer
from effarch.distill.frozen import in_dtype
from effarch.distill.select import Batch, Method, Selection, measurements, select_layers
from effarch.eval.settings import data_of, settings_of, teacher_of
from effarch.eval.table import Column, Table
from effarch.hub.convert import load_any
from effarch.models.lm import LM
from effarch.training.load import load_lm
from effarch.training.metrics import progress
from effarch.training.run import versions, write_atomic

FILE = "select_layers.json"


class SelectConfig(Config):
    """Whose layers, and how many to keep."""

    run: str = pydantic.Field(description="folder of a distillation whose every layer was converted, or its config")
    keep: int = pydantic.Field(gt=0, description="layers to give the teacher's attention back to")
    method: Method = pydantic.Field(
        "single", description='"single": by the drop of each alone; "greedy": each after those chosen before it'
    )
    teacher: str | None = pydantic.Field(
        None, description="folder of the teacher's run or checkpoint; null: as the config says"
    )
    rows: int = pydantic.Field(64, gt=0, description="rows of validation text to measure on")
    batch_size: int = pydantic.Field(8, gt=0, description="rows at a time")


def select(config: SelectConfig) -> int:
    """The command: measures, prints the table and the override to use, writes ``select_layers.json`` into the run."""
    folder, settings = _run_of(Path(config.run))
    student, teacher = load_lm(folder), load_any(config.teacher or teacher_of(folder, settings))
    if teacher.config.dtype != student.config.dtype:  # a checkpoint's own
        teacher = in_dtype(teacher, student.config.dtype)
    batches = _rows(_prepared(folder, settings), config)
    total = measurements(student.config.num_layers, config.keep, config.method)
    try:
        with progress(total, "restoring attention") as advance:
            chosen = select_layers(teacher, student, batches, config.keep, config.method, advance)
    except ValueError as error:
        raise UserError(str(error)) from error
    rows = layer_rows(chosen, student)
    table = Table(COLUMNS, tuple(rows))
    print(table.plain())
    kept = sorted(chosen.kept)
    override = f"student.keep=[{','.join(map(str, kept))}]"
    found = {
        "run": str(folder),
        "method": config.method,
        "rows": len(batches) * config.batch_size,
        "converted_kl_bits": chosen.converted,
        "layers": rows,
        "keep": kept,
        "override": override,
        "versions": versions(),
    }
    write_atomic(folder / FILE, json.dumps(found, indent=2) + "\n")
    print(f"\nKL of the student as it is: {chosen.converted:.4f} bits per token")
    print(f"with the attention of these {config.keep} layers restored: {chosen.after[-1]:.4f}")
    print(f"use: {override}")
    return 0


COLUMNS = (
    Column("layer", "layer"),
    Column("mixer", "mixer", align="left"),
    Column("kl_bits", "KL when restored", "bits/token", ".4f", "lower"),
    Column("drop_bits", "drop", "bits/token", ".4f"),
    Column("choice", "choice"),
    Column("after_bits", "KL after it", "bits/token", ".4f"),
)


def layer_rows(chosen: Selection, student: LM) -> list[dict[str, Any]]:
    """A row per layer; those that were chosen say when, and what was left then."""
    rows: list[dict[str, Any]] = []
    for i, kl in enumerate(chosen.restored):
        place = chosen.kept.index(i) if i in chosen.kept else None
        rows.append(
            {
                "layer": i,
                "mixer": student.config.block(i).mixer.type_name,
                "kl_bits": kl,
                "drop_bits": chosen.converted - kl,
                "choice": None if place is None else place + 1,
                "after_bits": None if place is None else chosen.after[place],
            }
        )
    return rows


def _run_of(path: Path) -> tuple[Path, dict[str, Any]]:
    """The run's folder and the keys of its config; a config file stands for the run that it describes."""
    settings = settings_of(path / "config.yaml" if path.is_dir() else path)
    if not path.is_dir():
        path = Path(settings.get("output_dir", "runs")) / settings.get("run_name", "run")
    if "stages" not in settings and "student" not in settings:
        raise UserError(f"{path}: expected the run of a distillation, its config has no student")
    return path, settings


def _prepared(folder: Path, settings: dict[str, Any]) -> Prepared:
    data = data_of(folder / "config.yaml", settings)
    length, cache_dir = settings.get("seq_len", 512), settings.get("cache_dir", "runs/data")
    return prepare(data, length, cache_dir, tokenizer=load_tokenizer(folder))


def _rows(prepared: Prepared, config: SelectConfig) -> list[Batch]:
    count = max(config.rows // config.batch_size, 1)
    return [b for _, b in zip(range(count), prepared.validation.in_order(config.batch_size), strict=False)]
