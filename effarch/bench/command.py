"""``effarch bench``: measures, shows progress, and writes a report."""

import shlex
import sys
from pathlib import Path

from effarch.bench import targets
from effarch.bench.config import BenchConfig
from effarch.bench.records import Records
from effarch.bench.report import tables, write_report
from effarch.bench.run import Row, ask, measure_all, seconds
from effarch.bench.subject import Subject
from effarch.bench.summary import reasons, took
from effarch.config import UserError
from effarch.eval.table import context, count, size


def line(subject: Subject, row: Row) -> str:
    """A row as it is told while the run goes on."""
    about = f"{subject.level} {subject.label}, {subject.mode}, T = {context(subject.length)}"
    about += f", for {subject.target}" if subject.target else ""
    if (spent := took(row)) is None:
        return f"{about}: {row.get('reason') or 'compiled'}"
    parts = [f"{spent:.3g} s{'' if seconds(row) else ' (estimated)'}", f"{count(row['tokens'] / spent)} tokens/s"]
    parts += [f"temporaries {size(row['temporary_bytes'])}"] if row.get("temporary_bytes") is not None else []
    parts += [row["reason"]] if row.get("reason") else []
    return f"{about}: {', '.join(parts)}"


def bench(config: BenchConfig) -> int:
    """Measures what the config names, prints the tables, and writes the report into the folder of the run."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    if missing := [reason for name in config.targets if (reason := targets.get(name).missing())]:
        raise UserError(*missing)
    subjects = config.subjects()
    machine = ask({"machine": shlex.join(["effarch", *sys.argv[1:]])})
    if "date" not in machine:
        raise UserError(f"bench: no process can be started here: {machine.get('reason')}")
    folder = Path(config.output_dir) / config.run_name
    console = Console(highlight=False, soft_wrap=True)
    bar = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Records(folder, machine) as records:
        kept = len(records.rows)
        if kept:
            console.print(f"{folder}: {kept} rows are kept")
        with Progress(*bar, console=console, transient=True, disable=not console.is_terminal) as progress:
            task = progress.add_task("ceilings", total=len(subjects))
            ceilings = {} if config.targets else _ceilings(records, config.dtype)

            def done(subject: Subject, row: Row) -> None:
                progress.update(task, advance=1, description=subject.label)
                progress.console.print(line(subject, row))

            rows = measure_all(
                subjects,
                records,
                repeats=config.repeats,
                time_limit=config.time_limit,
                memory_limit=None if config.memory_limit is None else config.memory_limit * 2**30,
                done=done,
            )
    page = write_report(folder, rows, machine=machine, ceilings=ceilings, accuracy=config.accuracy)
    for heading, table in tables(rows, ceilings).items():
        print(f"\n{heading}\n\n{table.plain(console.width if console.is_terminal else None)}")
    if why := reasons(rows):
        print("\nnot measured:\n  " + "\n  ".join(why))
    print(f"\n{page}")
    return 0


def _ceilings(records: Records, dtype: str) -> dict[str, float]:
    """Of this machine, kept with the rows."""
    key = f"ceilings {dtype}"
    if key not in records.rows:
        found = ask({"ceilings": dtype})
        if "reason" in found:
            return {}
        records.add({"key": key, "ceilings": found})
    return records.rows[key]["ceilings"]
