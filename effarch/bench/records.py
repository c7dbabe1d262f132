"""Rows of a run on disk, one JSON object a line: what is there is not measured again."""

import json
import os
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any

from effarch.bench.machine import SAME
from effarch.config import UserError
from effarch.training.run import write_atomic


class Records:
    """The rows of a folder, by the key of their subject; closes its file when left.

    Args:
      folder: of the run; created where it does not exist. machine: see :func:`effarch.bench.machine.machine`.

    Raises:
      UserError: the folder holds rows that another machine, version or commit measured.
    """

    def __init__(self, folder: Path, machine: Mapping[str, Any]) -> None:
        self.folder = folder
        folder.mkdir(parents=True, exist_ok=True)
        about = folder / "machine.json"
        if about.exists():
            known = json.loads(about.read_text())
            if other := [name for name in SAME if known.get(name) != machine.get(name)]:
                raise UserError(
                    f"run_name: {folder} holds rows of another {other[0]} ({known.get(other[0])}, here "
                    f"{machine.get(other[0])}); choose another run_name, or remove the folder"
                )
        write_atomic(about, json.dumps(dict(machine), indent=2) + "\n")
        self.rows: dict[str, dict[str, Any]] = {}
        path = folder / "rows.jsonl"
        if path.exists():
            text = path.read_text()
            whole = text[: text.rfind("\n") + 1]  # a line that was being written when the power went is measured again
            if whole != text:
                write_atomic(path, whole)
            for line in whole.splitlines():
                row = json.loads(line)
                self.rows[row["key"]] = row
        self._file = path.open("a", encoding="utf-8")

    def __enter__(self) -> "Records":
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._file.close()

    def add(self, row: Mapping[str, Any]) -> None:
        """Keeps a row, on disk before it returns."""
        self.rows[row["key"]] = dict(row)
        self._file.write(json.dumps(dict(row)) + "\n")
        self._file.flush()
        os.fsync(self._file.fileno())
