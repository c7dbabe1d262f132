"""From rows to figures: curves by level and mode, what fits them, where they cross, and the tables that say so."""

import dataclasses
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from effarch.bench.fits import Fit, break_even, crossover, fit
from effarch.bench.run import Row, seconds
from effarch.bench.subject import Subject
from effarch.eval.table import Column, Table, context, count, percent, size

SOFTMAX = ("softmax", "softmax_materialised", "softmax_platform", "softmax_attention", "as it is")


@dataclasses.dataclass(frozen=True)
class Curve:
    """The rows of one subject over the length.

    Attributes:
      level, mode, name, target: what it is; target "" where it was measured here. baseline: what others are held to.
      rows: by T.
    """

    level: str
    mode: str
    name: str
    target: str
    baseline: bool
    rows: Mapping[int, Row]

    def values(self, figure: Callable[[Row], float | None]) -> dict[int, float]:
        """``{T: figure}`` of the rows that have it."""
        found = {t: figure(row) for t, row in self.rows.items()}
        return {t: float(v) for t, v in found.items() if v is not None}

    @property
    def times(self) -> dict[int, float]:
        """Seconds of a call by T; estimated ones for a target."""
        return self.values(took)

    @property
    def warm(self) -> dict[int, float]:
        """The times that fits and crossings may rest on: not those of a single run without a warm-up."""
        return self.values(lambda row: None if row.get("cold") else took(row))

    @property
    def temporaries(self) -> dict[int, float]:
        """Compiled temporary bytes by T."""
        return self.values(lambda row: row.get("temporary_bytes"))

    @property
    def speeds(self) -> dict[int, float]:
        """Tokens per second by T."""
        return self.values(lambda row: row["tokens"] / took(row) if took(row) and row.get("tokens") else None)


def took(row: Row) -> float | None:
    """Seconds of a call: the median, or the estimate where it was compiled for a target."""
    return seconds(row) or row.get("estimated_seconds")


def curves(rows: Sequence[Row]) -> list[Curve]:
    """Rows grouped, in their order."""
    grouped: dict[tuple[str, ...], dict[int, Row]] = {}
    for row in rows:
        grouped.setdefault(tuple(row["series"]), {})[row["subject"]["length"]] = row
    return [
        Curve(level, mode, name, target, next(iter(found.values()))["subject"]["baseline"], found)
        for (level, mode, name, target), found in grouped.items()
    ]


def sections(found: Sequence[Curve]) -> dict[tuple[str, str, str], list[Curve]]:
    """Curves that belong into one table: level, mode, target."""
    together: dict[tuple[str, str, str], list[Curve]] = {}
    for curve in found:
        together.setdefault((curve.level, curve.mode, curve.target), []).append(curve)
    return together


def title(level: str, mode: str, target: str) -> str:
    """The heading of a section."""
    what = {"training": "forward and backward", "prefill": "forward", "decode": "decoding"}[mode]
    where = f", compiled for {target}: memory exact, time estimated" if target else ""
    return f"{level.capitalize()}s, {what}{where}"


def table(group: Sequence[Curve], ceilings: Mapping[str, float]) -> Table:
    """One row per curve: seconds (decoding: tokens/s) by T, exponents, memory, share of the machine, crossings."""
    lengths = sorted({t for curve in group for t in curve.rows})
    mode, estimated = group[0].mode, bool(group[0].target)
    shown = "tokens/s" if mode == "decode" else "s (est.)" if estimated else "s"
    references = [c for c in group if c.baseline and c.times and not _is_peer(c)]
    columns = (
        Column("name", "what", align="left"),
        *(Column(f"t{t}", context(t), shown, ".3g" if mode != "decode" else count) for t in lengths),
        Column("noise", "noise", "%", percent),
        Column("estimate", "estimate", align="left"),
        Column("time", "time ~ T^"),
        Column("memory", "memory ~ T^"),
        Column("per_token", "temporaries per token", format=size),
        Column("resident", f"resident at {context(lengths[-1])}", format=size),
        Column("share", "of matmul", "%", percent),
        Column("small", "of 64 x 64 products", "%", percent),
        Column("moved", "of copy", "%", percent),
        *(Column(f"cross {c.name}", f"faster than {c.name} from", format=crossing) for c in references),
        Column("state", f"state at {context(lengths[-1])}", format=size),
        Column("even", "smaller than KV cache from", format=crossing),
        Column("compile", "compiling", "s", ".1f"),
    )
    rows = tuple(_row(curve, lengths, references, ceilings) for curve in group)
    return Table(columns, rows, frozenset(c.name for c in group if c.baseline)).filled()


def _row(
    curve: Curve, lengths: Sequence[int], references: Sequence[Curve], ceilings: Mapping[str, float]
) -> dict[str, Any]:
    from effarch.bench.measure import spread

    times, figures = curve.times, curve.speeds if curve.mode == "decode" else curve.times
    noises = [spread(row["seconds"]) for row in curve.rows.values() if len(row.get("seconds") or ()) > 1]
    last, at_end = curve.rows[max(times)] if times else {}, curve.rows.get(lengths[-1], {})
    here, spent = not curve.target, took(last) if last else None
    least = last.get("source") == "formula"  # at the least: crossing what is counted would say nothing
    growth, memory = fit(curve.warm) if curve.mode != "decode" else None, fit(curve.temporaries)

    def reached(figure: str, ceiling: str) -> float | None:
        known = here and spent and last.get(figure) and ceiling in ceilings
        return last[figure] / spent / ceilings[ceiling] if known else None

    return {
        "name": curve.name,
        **{f"t{t}": figures.get(t) for t in lengths},
        "noise": max(noises) if noises else None,
        "estimate": None if here or not spent else f"{last.get('bound')}, {'at least' if least else 'counted'}",
        "time": growth and interval(growth),
        "memory": memory and interval(memory) if curve.mode != "decode" else None,
        "per_token": memory.per_token if memory and curve.mode != "decode" else None,
        "resident": at_end.get("resident_bytes"),
        "share": reached("flops", "matmul") if curve.mode != "decode" else None,
        "small": reached("flops", "matmul_64") if curve.level == "op" and curve.mode != "decode" else None,
        "moved": reached("traffic", "copy") if curve.mode == "decode" else None,
        **{f"cross {c.name}": crossover(curve.warm, c.warm) for c in references if c is not curve and not least},
        "state": at_end.get("state_bytes"),
        "even": even(curve) if curve.mode == "decode" else None,
        "compile": last.get("compile_seconds") if last else None,
    }


def interval(found: Fit) -> str:
    """``1.02 ± 0.01``: the exponent and the half of its 95 % interval."""
    half = (found.high - found.low) / 2
    return f"{found.exponent:.2f} ± {half:.2f}" if half else f"{found.exponent:.2f}"


def crossing(length: float | None) -> str:
    """A length from which something holds."""
    if length is None:
        return "-"
    return "never here" if math.isinf(length) else context(round(length))


def even(curve: Curve) -> float | None:
    """The context from which the state is smaller than a cache of all keys and values; None for attention."""
    subject = Subject.model_validate(next(iter(curve.rows.values()))["subject"])
    if curve.baseline:
        return None
    if subject.level == "op":
        row = next((r for r in curve.rows.values() if r.get("state_bytes")), None)
        per_token = 2 * subject.heads * subject.head_dim * (2 if subject.dtype == "bfloat16" else 4)
        return None if row is None else math.ceil(row["state_bytes"] / per_token)
    if subject.mixer is None:
        return None
    from effarch.mixers.softmax_attention import SoftmaxAttention

    heads, dim, mixer = subject.dim // 64, subject.dim, subject.mixer
    cache = SoftmaxAttention(num_heads=heads, num_kv_heads=heads, head_dim=64)
    if not mixer.recurrent:
        return None
    held = mixer.state_bytes(dim, 1024, subject.dtype)  # does not grow
    return break_even(lambda _: held, lambda t: cache.state_bytes(dim, t, subject.dtype))


def peers_table(found: Sequence[Curve]) -> Table | None:
    """Ours against other people's code at the same shape in the same run; None where nobody else's ran."""
    ours = {(c.level, c.mode, c.target, c.name): c for c in found if not _is_peer(c)}
    rows = []
    for curve in filter(_is_peer, found):
        subject = next(iter(curve.rows.values()))["subject"]
        mine = ours.get((curve.level, curve.mode, curve.target, subject["name"]))
        for t in sorted(curve.rows):
            theirs, row = curve.times.get(t), curve.rows[t]
            own = mine.times.get(t) if mine else None
            ratio = theirs / own if theirs and own else None
            rows.append(
                {
                    "name": f"{subject['name']} against {curve.name}",
                    "mode": curve.mode,
                    "length": t,
                    "ours": own,
                    "theirs": theirs,
                    "ratio": ratio,
                    "error": row.get("error"),
                    "note": row.get("reason") or None,
                }
            )
    columns = (
        Column("name", "ours against", align="left"),
        Column("mode", "mode", align="left"),
        Column("length", "T", format=context),
        Column("ours", "ours", "s", ".3g"),
        Column("theirs", "theirs", "s", ".3g"),
        Column("ratio", "theirs / ours", format=".2f"),
        Column("error", "difference of results", format=".0e"),
        Column("note", "note", align="left"),
    )
    return Table(columns, tuple(rows)) if rows else None


def _is_peer(curve: Curve) -> bool:
    return next(iter(curve.rows.values()))["subject"]["peer"] is not None


def reasons(rows: Sequence[Row]) -> list[str]:
    """Why some rows have no figures, or fewer than asked for: one line for each reason of a curve."""
    told: dict[tuple[str, str], list[int]] = {}
    for row in rows:
        if row.get("reason"):
            level, mode, name, target = row["series"]
            about = " ".join(filter(None, (level, name, mode, target and f"for {target}")))
            told.setdefault((about, row["reason"]), []).append(row["subject"]["length"])
    return [f"{about}, T = {', '.join(map(context, lengths))}: {why}" for (about, why), lengths in told.items()]
