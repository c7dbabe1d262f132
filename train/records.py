"""Results of many small runs in one file, so that repeating the command runs what is missing."""

import json
import threading
from pathlib import Path
from typing import Any

from effarch.models.lm import LMConfig
from effarch.training.run import write_atomic


class Records:
    """The results in ``results.jsonl``, one line per model and learning rate; a line that a kill tore is dropped."""

    def __init__(self, path: Path) -> None:
        self._path, self._lock = path, threading.Lock()
        self._found: dict[tuple[str, float], dict[str, Any]] = {}
        for line in path.read_text().splitlines() if path.exists() else []:
            try:
                record = json.loads(line)
            except ValueError:
                continue
            self._found[record["model"], record["learning_rate"]] = record

    def get(self, model: LMConfig, rate: float) -> dict[str, Any] | None:
        """The result of a model at a learning rate."""
        return self._found.get((model.model_dump_json(), rate))

    def add(self, model: LMConfig, record: dict[str, Any]) -> None:
        """Keeps a result at once."""
        with self._lock:
            record = {"model": model.model_dump_json(), **record}
            self._found[record["model"], record["learning_rate"]] = record
            write_atomic(self._path, "".join(json.dumps(r) + "\n" for r in self._found.values()))
