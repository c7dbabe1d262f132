"""``effarch bench compare A.json B.json``: ratios with their noise, and what regressed beyond it."""

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pydantic

from effarch.bench.measure import spread
from effarch.bench.report import FORMAT
from effarch.bench.run import Row, seconds
from effarch.config import Config, UserError
from effarch.eval.table import Column, Table, context

FLOOR = 0.05  # time: what no repeat within a run shows: another layout in memory, another core
FATTER = 1.01  # memory is compiled, and so exact


class CompareConfig(Config):
    """Two reports of the same subjects."""

    before: str = pydantic.Field(description="report.json of the earlier run")
    after: str = pydantic.Field(description="report.json of the later run")


def read_rows(path: str, field: str) -> dict[str, Row]:
    """Rows of a report by what they are about.

    Raises:
      UserError: there is no such file, or it is no report of ours.
    """
    try:
        report = json.loads(Path(path).read_text(encoding="utf-8"))
    except OSError as error:
        raise UserError(f"{field}: {path}: {error.strerror or error}") from None
    except ValueError:
        raise UserError(f"{field}: {path}: expected the report.json of effarch bench, got no JSON") from None
    if not isinstance(report, Mapping) or report.get("format") != FORMAT or not isinstance(report.get("rows"), list):
        raise UserError(f"{field}: {path}: expected the report.json of effarch bench")
    return {row["key"]: row for row in report["rows"]}


def compared(before: Row, after: Row) -> dict[str, Any]:
    """The ratios of two rows, after over before, and the verdict.

    Time is a regression beyond both runs' noise, put together, twice, and five per cent; memory beyond one per cent.
    """
    level, mode, name, target = after["series"]
    old, new = seconds(before), seconds(after)
    ratio = new / old if old and new else None
    noise = None
    if ratio is not None:
        noise = max(2 * math.hypot(spread(before["seconds"]), spread(after["seconds"])), FLOOR)
    small, large = before.get("temporary_bytes"), after.get("temporary_bytes")
    memory = large / small if small and large else None
    slower = ratio is not None and noise is not None and ratio > 1 + noise
    faster = ratio is not None and noise is not None and ratio < 1 / (1 + noise)
    fatter = memory is not None and memory > FATTER
    lost = old is not None and new is None
    verdict = [word for word, holds in (("SLOWER", slower), ("FATTER", fatter), ("DOES NOT RUN", lost)) if holds]
    return {
        "name": " ".join(filter(None, (level, name, mode, target))),
        "length": after["subject"]["length"],
        "before": old,
        "after": new,
        "time": ratio,
        "noise": noise,
        "memory": memory,
        "verdict": " ".join(verdict) or ("faster" if faster else "same"),
    }


def compare(config: CompareConfig) -> int:
    """Prints the comparison; exit code 1 where something regressed."""
    before, after = read_rows(config.before, "before"), read_rows(config.after, "after")
    common = [key for key in after if key in before]
    if not common:
        raise UserError("after: the two reports have no subject in common")
    rows = [compared(before[key], after[key]) for key in common]
    columns = (
        Column("name", "what", align="left"),
        Column("length", "T", format=context),
        Column("before", "before", "s", ".3g"),
        Column("after", "after", "s", ".3g"),
        Column("time", "time, after / before", format=".3f"),
        Column("noise", "noise", "±", ".3f"),
        Column("memory", "memory, after / before", format=".3f"),
        Column("verdict", "verdict", align="left"),
    )
    print(Table(columns, tuple(rows)).plain())
    worse = sum(row["verdict"] not in ("same", "faster") for row in rows)
    left = len(before.keys() ^ after.keys())
    print(f"{worse} of {len(rows)} regressed" + (f"; {left} subjects are in one report only" if left else ""))
    return int(worse > 0)
