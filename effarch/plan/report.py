"""A plan as text."""

from collections.abc import Mapping
from typing import Any

from effarch.eval.table import Column, Table, brief, context, count, duration, size
from effarch.plan.outcome import Plan, StepPlan

_HELD = ("parameters", "teacher", "optimizer", "state", "batch")


def text(plan: Plan, width: int | None = None) -> str:
    """Tables of memory, work and collectives, and what they take for granted."""
    mesh = ", ".join(f"{name} {n}" for name, n in plan.mesh.items() if n > 1) or "one device"
    chips = f"{plan.chips} x {plan.chip}, {size(plan.memory)} each"
    parts = [
        f"{plan.target}: {chips}; mesh: {mesh}; {count(plan.parameters)} parameters",
        _memory(plan).plain(width),
        _work(plan).plain(width),
        *([said.plain(width)] if (said := _collectives(plan)).rows else []),
        *_notes(plan),
        "\n".join(f"- {line}" for line in plan.assumptions),
    ]
    return "\n\n".join(parts)


def _memory(plan: Plan) -> Table:
    columns = [
        Column("name", plan.what if plan.what != "train" else "step"),
        Column("batch_size", "rows"),
        Column("seq_len", "T", format=context),
        Column("fits", "fits"),
        Column("needed", "per chip", format=size),
        *(Column(part, part, format=size) for part in _HELD),
        Column("temporaries", "temporaries", format=size),
        Column("activations", "activations", format=size),
        Column("outputs", "outputs", format=size),
    ]
    rows = [{**vars(step), **step.held, "fits": "yes" if step.fits else "NO"} for step in plan.steps]
    return Table(tuple(columns), tuple(rows)).filled()


def _work(plan: Plan) -> Table:
    def row(step: StepPlan) -> Mapping[str, Any]:
        derived = {"step": step.step_seconds, "bound": step.bound, "tokens_per_s": step.tokens_per_s}
        return {
            **vars(step),
            **step.seconds,
            **derived,
            "hidden": ", ".join(step.opaque) or ("loops" if step.source == "formula" else ""),
        }

    columns = (
        Column("name", "per chip and step"),
        Column("flops", "FLOPs", format=count),
        Column("traffic", "bytes", format=size),
        *(Column(name, name, format=brief) for name in ("compute", "memory", "network")),
        Column("step", "step, at least", format=brief),
        Column("bound", "bound", align="left"),
        Column("tokens_per_s", "tokens/s, at most", format=count),
        Column("compile_seconds", "compiled in", format=duration),
        Column("hidden", "not counted", align="left"),
    )
    return Table(columns, tuple(row(step) for step in plan.steps)).filled()


def _collectives(plan: Plan) -> Table:
    columns = (
        Column("name", "collectives"),
        Column("kind", "kind", align="left"),
        Column("calls", "calls", format=count),
        Column("bytes", "bytes", format=size),
        Column("sent", "sent", format=size),
    )
    rows = tuple({"name": step.name, **vars(said)} for step in plan.steps for said in step.collectives)
    return Table(columns, rows)


def _notes(plan: Plan) -> list[str]:
    """What was sought, and what does not fit."""
    lines = [f"{step.name}: {step.reason}" for step in plan.steps if not step.fits]
    told = "kernels or loops hide what is done; times are those of the models' own FLOPs and of what is read once"
    lines += [f"{step.name}: {told}" for step in plan.steps if step.source == "formula" and step.seconds]
    for step in plan.steps if plan.find else ():
        tried = ", ".join(f"{value}{'' if fits else ' (no)'}" for value, fits in step.tried)
        best = "nothing fits" if step.largest is None else f"the largest {plan.find} that fits is {step.largest}"
        lines.append(f"{step.name}: {best}; tried {tried}")
    return ["\n".join(lines)] if lines else []
