"""Plants every bug in a copy of the package, runs the tests that should notice, and prints the list and the outcome.

    python -m tests.planted ["part of a name" ...]

Exit code 1 if a bug was not caught. First the same tests run on the copy without any bug, and must pass.
"""

import sys
import tempfile
import time
from pathlib import Path

from effarch.eval.table import Column, Table
from tests.planted.bugs import BUGS
from tests.planted.plant import copy_project, failing, planted


def main(words: list[str]) -> int:
    """Runs the bugs whose names hold any of the words; all of them for none."""
    chosen = [bug for bug in BUGS if not words or any(word in bug.name for word in words)]
    rows, missed = [], 0
    with tempfile.TemporaryDirectory(prefix="effarch-planted-") as folder:
        root = copy_project(Path(folder))
        tests = sorted({test for bug in chosen for test in bug.tests})
        if broken := failing(root, tests, stop_at_first=False):
            print("these tests fail without any bug:\n  " + "\n  ".join(broken), file=sys.stderr)
            return 2
        for number, bug in enumerate(chosen, 1):
            started = time.monotonic()
            with planted(root, bug):
                found = failing(root, bug.tests)
            missed += not found
            outcome = f"caught by {found[0].rpartition('::')[2]}" if found else "NOT CAUGHT"
            rows.append({"bug": bug.name, "file": bug.file, "outcome": outcome})
            print(f"[{number}/{len(chosen)}] {bug.name}: {outcome} ({time.monotonic() - started:.0f} s)", flush=True)
    columns = tuple(Column(name, name, align="left") for name in ("bug", "file", "outcome"))
    print(Table(columns, tuple(rows)).plain())
    print(f"{len(chosen) - missed} of {len(chosen)} bugs caught")
    return int(missed > 0)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
