"""Measures subjects one after another, each in a process of its own; rows that are there already are kept."""

import json
import math
import os
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from effarch.bench import worker
from effarch.bench.records import Records
from effarch.bench.subject import Subject

COMPILING = 900.0  # seconds that a worker may take beside its runs
Row = dict[str, Any]


def ask(
    request: Mapping[str, Any], *, target: str | None = None, peer: bool = False, timeout: float = COMPILING
) -> Row:
    """What a new worker answers; where it dies, why. Ctrl-C ends the worker, too."""
    with tempfile.TemporaryFile("w+") as errors:
        try:
            done = subprocess.run(
                [sys.executable, "-m", "effarch.bench.worker"],
                input=json.dumps(request),
                stdout=subprocess.PIPE,
                stderr=errors,
                text=True,
                env=os.environ | worker.environment(target, peer),
                timeout=timeout,
                check=False,
            )
        except subprocess.TimeoutExpired:
            return {"reason": f"took more than {timeout:.0f} s"}
        errors.seek(0)
        said = errors.read().strip().splitlines()
    for line in reversed(done.stdout.splitlines()):
        if line.startswith(worker.MARK):
            return json.loads(line[len(worker.MARK) :])
    if done.returncode < 0:
        return {
            "reason": f"killed by signal {-done.returncode}" + (" (out of memory?)" if done.returncode == -9 else "")
        }
    last = next((line for line in reversed(said) if line.strip() and not line.startswith(("-", " "))), "no answer")
    return {"reason": last[:300]}


def measure_all(
    subjects: Iterable[Subject],
    records: Records,
    *,
    repeats: int,
    time_limit: float,
    memory_limit: float | None,
    done: Callable[[Subject, Row], None],
) -> list[Row]:
    """Rows of all subjects, in order.

    What would take longer than ``time_limit`` once, as far as shorter lengths tell, is not begun, nor what follows a
    length that did not run; the reason stands in the row, which is not kept on disk.

    Args:
      subjects: those of one curve one after another, lengths ascending. records: where rows are kept.
      repeats, time_limit, memory_limit: see :func:`effarch.bench.measure.measure`. done: told of every row.
    """
    rows: list[Row] = []
    curve: list[Row] = []
    for subject in subjects:
        if not curve or curve[-1]["series"] != list(subject.series):
            curve = []
        row = {"key": subject.key, "series": list(subject.series), "subject": subject.model_dump(mode="json")}
        if subject.key in records.rows:
            row = records.rows[subject.key]
        elif reason := stop(curve, subject.length, time_limit):
            row |= {"reason": reason}
        else:
            limits = {"repeats": repeats, "time_limit": time_limit, "memory_limit": memory_limit}
            request = {"subject": subject.model_dump(mode="json"), **limits}
            timeout = COMPILING + 4 * time_limit
            row |= ask(request, target=subject.target, peer=subject.peer is not None, timeout=timeout)
            records.add(row)
        curve.append(row)
        rows.append(row)
        done(subject, row)
    return rows


def stop(curve: list[Row], length: int, time_limit: float) -> str:
    """Why the next length of a curve is not begun; "" where it is."""
    if not curve:
        return ""
    last = curve[-1]
    before = last["subject"]["length"]
    took = seconds(last)
    if took is None and last.get("estimated_seconds") is None:
        why = last.get("reason") or "no figures"
        return (
            why if why.startswith("not begun") or "compile_seconds" not in last else f"not begun: {why} at T = {before}"
        )
    if took is None:
        return ""
    growth = 1.0
    if len(curve) > 1 and (earlier := seconds(curve[-2])):
        growth = max(1.0, math.log(took / earlier) / math.log(before / curve[-2]["subject"]["length"]))
    expected = took * (length / before) ** growth
    return f"not begun: would take about {expected:.3g} s" if expected > time_limit else ""


def seconds(row: Mapping[str, Any]) -> float | None:
    """The median of a row's runs; None where it did not run."""
    return statistics.median(row["seconds"]) if row.get("seconds") else None
