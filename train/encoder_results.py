"""What a distillation of an encoder reports: one row per model, all scored on the same rows."""

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from effarch.eval.card import model_card
from effarch.eval.report import results_table, strict, write_report
from effarch.models.encoder import Encoder
from effarch.models.lm import parameter_count
from effarch.parallel.processes import any_of, of_this_process, on_first
from effarch.training.faults import EXIT_SIGTERM, StopSignal
from effarch.training.run import write_atomic
from train.loop import Stopped
from train.results import what_was_run

TEACHER = "teacher"
_LOAD = """\
```python
from effarch import hub

encoder = hub.load_encoder("FOLDER")
```"""


class EncoderResults:
    """The table of a run, kept in its folder from the first row on, so that a run that goes on has all of them.

    Of several processes, the first measures.

    Args:
      folder: of the run. score: of a model and its teacher, None where it is the teacher: a row of the report.
      stop: checked after every measurement.
    """

    def __init__(self, folder: Path, score: Callable[[Any, Any | None], Mapping[str, Any]], stop: StopSignal) -> None:
        self.folder, self.score, self.stop = folder, score, stop
        self._file = folder / "results.json"
        self.rows: dict[str, dict[str, Any]] = on_first(
            lambda: json.loads(self._file.read_text()) if self._file.exists() else {}
        )
        self._teacher: Encoder | None = None

    def measure(self, name: str, model: Encoder) -> None:
        """A row, unless there is one; the teacher's comes first.

        Raises:
          Stopped: a signal came meanwhile.
        """
        model = of_this_process(model)
        if name == TEACHER:
            self._teacher = model
        if name not in self.rows:
            self.rows[name] = on_first(lambda: self._measured(name, model))
        if any_of(self.stop.requested):
            raise Stopped(self.stop.exit_code or EXIT_SIGTERM)

    def _measured(self, name: str, model: Encoder) -> dict[str, Any]:
        scores = self.score(model, None if name == TEACHER else self._teacher)
        row = {"name": name, **scores, "parameters": parameter_count(model), "reference": name == TEACHER}
        write_atomic(self._file, json.dumps(self.rows | {name: strict(row)}))
        return row

    def write(
        self, module: str, title: str, summary: Callable[[Mapping[str, Any]], str], task: str, **about: Any
    ) -> str:
        """``report.html``, ``report.json``, and the table on the terminal; returns the text of the model card.

        Args:
          module: that was run. title: of the report. summary: of the distilled student's row. task: as the hub calls
            it. about: what was run.
        """
        rows = list(self.rows.values())
        last = next(row for row in reversed(rows) if "after" in row["name"])
        report = {
            "title": title,
            "summary": summary(last),
            "run": {**what_was_run(module), **about},
            "models": rows,
            "student": last["name"],
            "card": {"load": _LOAD, "task": task},
        }
        write_report(self.folder, report)
        print(results_table(rows).plain(width=120))
        print(f"\nreport: {self.folder / 'report.html'}")
        return model_card(strict(report))
