"""Planting a bug: in a copy of the project, never in the project."""

import contextlib
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

from tests.planted.bugs import Bug

PROJECT = Path(__file__).parent.parent.parent


def source(bug: Bug, root: Path = PROJECT) -> str:
    """The file that a bug is planted in.

    Raises:
      ValueError: what the bug replaces does not stand there exactly once.
    """
    text = (root / "effarch" / bug.file).read_text()
    if (count := text.count(bug.old)) != 1:
        raise ValueError(f"{bug.name}: expected to find its line in effarch/{bug.file} once, found it {count} times")
    return text


def copy_project(folder: Path) -> Path:
    """A copy of what tests need, in ``folder``."""
    ignore = shutil.ignore_patterns("__pycache__", "*.npz")
    for name in ("effarch", "tests", "train", "configs"):
        shutil.copytree(PROJECT / name, folder / name, ignore=ignore)
    shutil.copy(PROJECT / "pyproject.toml", folder)
    return folder


@contextlib.contextmanager
def planted(root: Path, bug: Bug) -> Iterator[None]:
    """The bug stands in the copy at ``root`` while the block runs."""
    text = source(bug, root)
    path = root / "effarch" / bug.file
    path.write_text(text.replace(bug.old, bug.new))
    try:
        yield
    finally:
        path.write_text(text)


def failing(root: Path, tests: Sequence[str], *, stop_at_first: bool = True) -> list[str]:
    """The tests that fail in the copy at ``root``; a run that breaks otherwise (a crash) counts as one that fails."""
    command = [sys.executable, "-B", "-m", "pytest", "-q", "-p", "no:cacheprovider", "-rfE", "--no-header", *tests]
    environment = {name: x for name, x in os.environ.items() if not name.startswith(("PYTEST_", "EFFARCH_"))}
    done = subprocess.run(
        command + ["-x"] * stop_at_first, cwd=root, env=environment, capture_output=True, text=True, check=False
    )
    if done.returncode == 0:
        return []
    if done.returncode > 2:  # no such test, or pytest could not start: the list is wrong, not the code
        raise RuntimeError(f"pytest {' '.join(tests)}: exit code {done.returncode}\n{done.stdout[-3000:]}")
    lines = [
        line.split(" - ")[0].split(" ", 1)[1]
        for line in done.stdout.splitlines()
        if line.startswith(("FAILED", "ERROR"))
    ]
    return lines or [f"exit code {done.returncode}"]
