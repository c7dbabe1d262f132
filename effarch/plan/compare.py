"""``effarch plan compare FILE``: several runs on several targets, one table; what was planned before is not again."""

import json
import sys
from pathlib import Path
from typing import Annotated, Any, Self

import pydantic

from effarch.config import Config, UserError, load
from effarch.eval.report import write_files
from effarch.eval.table import Column, Table, brief, context, count, size
from effarch.plan.config import PlanOptions, schema_of
from effarch.plan.outcome import Plan
from effarch.plan.run import plan

_OPTIONS = ("what", "stage", "find", "memory")
_SHOWN = ("batch_size", "seq_len", "needed", "temporaries", "flops", "tokens_per_s")


class PlannedRun(Config):
    """A run, of a table of plans."""

    name: str = pydantic.Field(description="in the table")
    config: str = pydantic.Field(description="YAML file of train.pretrain or train.distill")
    overrides: tuple[str, ...] = pydantic.Field((), description="keys of it and of effarch plan, key=value")


class PlannedOn(Config):
    """A target, of a table of plans."""

    target: str = pydantic.Field(description="as of effarch plan")
    overrides: tuple[str, ...] = pydantic.Field((), description="keys of every run there: batch_size, mesh ...")


class CompareConfig(Config):
    """A table of plans: every run on every target."""

    output: str = pydantic.Field("plans", description="folder for plans.json and plans.md; kept plans are not repeated")
    runs: Annotated[tuple[PlannedRun, ...], pydantic.Field(min_length=1)]
    targets: Annotated[tuple[PlannedOn, ...], pydantic.Field(min_length=1)]

    @pydantic.model_validator(mode="after")
    def _distinct(self) -> Self:
        names = [run.name for run in self.runs]
        if twice := [name for name in names if names.count(name) > 1]:
            raise ValueError(f"runs: expected different names, got {twice[0]!r} twice")
        return self

    def plans(self) -> list[tuple[str, PlanOptions]]:
        """Every plan, by the name of its run, in the order of the table.

        Raises:
          UserError: a file that cannot be read, or a key in it or in the overrides.
        """
        found, problems = [], []
        for run in self.runs:
            for on in self.targets:
                keys = [*run.overrides, *on.overrides, f"target={on.target}"]
                try:
                    found.append((run.name, load(schema_of(run.config), run.config, keys)))
                except UserError as error:
                    problems += [f"{run.name}, {on.target}: {line}" for line in error.lines]
        if problems:
            raise UserError(*dict.fromkeys(problems))
        return found


def compare(config: CompareConfig) -> int:
    """The command."""
    wanted = config.plans()
    path = Path(config.output) / "plans.json"
    kept = _kept(path)
    rows, report = [], []
    for number, (name, asked) in enumerate(wanted, 1):
        key = {"name": name, "asked": asked.model_dump(mode="json")}
        found = next((entry for entry in kept if entry["key"] == key), None)
        if found is None:
            print(f"{number} of {len(wanted)}: {name} on {asked.target}", file=sys.stderr, flush=True)
            found = {"key": key, **_planned(asked)}
            kept.append(found)
        report.append(found)
        rows += rows_of(name, asked.target, found)
        write_files(path.parent, {"plans.json": json.dumps(kept, indent=1) + "\n"})
    table = plans_table(rows)
    write_files(path.parent, {"plans.json": json.dumps(report, indent=1) + "\n", "plans.md": table.markdown() + "\n"})
    print(table.plain())
    return 0


def _kept(path: Path) -> list[dict[str, Any]]:
    if not path.exists():
        return []
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
        return [entry for entry in found if {"key", "plan", "failed"} <= set(entry)]
    except (ValueError, TypeError) as error:
        raise UserError(f"{path}: expected what an earlier comparison wrote; delete it to begin anew") from error


def _planned(asked: PlanOptions) -> dict[str, Any]:
    """A plan as data, or why there is none."""
    options = {name: getattr(asked, name) for name in _OPTIONS}
    try:
        found: Plan = plan(asked.planned_run(), asked.target, **options)  # ty: ignore
    except UserError as error:
        if "not installed" in str(error):
            raise
        return {"plan": None, "failed": "; ".join(error.lines)}
    return {"plan": found.as_dict(), "failed": None}


def rows_of(name: str, target: str, found: dict[str, Any]) -> list[dict[str, Any]]:
    """The rows of a plan: one per step."""
    if (planned := found["plan"]) is None:
        return [{"name": name, "target": target, "fits": "NO", "notes": found["failed"]}]
    rows = []
    for step in planned["steps"]:
        several = f"{name}, {step['name']}" if len(planned["steps"]) > 1 else name
        held = step["held"]
        rows.append(
            {
                **{key: step[key] for key in _SHOWN},
                "name": several,
                "target": target,
                "chips": planned["chips"],
                "fits": "yes" if step["fits"] else "NO",
                "parameters": held.get("parameters"),
                "optimizer": held.get("optimizer"),
                "sent": sum(said["sent"] for said in step["collectives"]),
                "network": step["seconds"].get("network"),
                "step": step["step_seconds"],
                "bound": step["bound"],
                "largest": step["largest"],
                "notes": step["reason"] or ", ".join(step["opaque"]),
            }
        )
    return rows


def plans_table(rows: list[dict[str, Any]]) -> Table:
    """One row per run, target and step; everything per chip but rows and tokens."""
    columns = (
        Column("name", "Run"),
        Column("target", "Target", align="left"),
        Column("chips", "Chips"),
        Column("batch_size", "Rows"),
        Column("seq_len", "T", format=context),
        Column("fits", "Fits"),
        Column("needed", "Per chip", format=size),
        Column("parameters", "Parameters", format=size),
        Column("optimizer", "Optimizer", format=size),
        Column("temporaries", "Temporaries", format=size),
        Column("flops", "FLOPs", format=count),
        Column("sent", "Sent", format=size),
        Column("network", "Network", format=brief),
        Column("step", "Step, at least", format=brief),
        Column("bound", "Bound", align="left"),
        Column("tokens_per_s", "Tokens/s, at most", format=count),
        Column("largest", "Largest", format=count),
        Column("notes", "Notes", align="left"),
    )
    return Table(columns, tuple(rows)).filled()
