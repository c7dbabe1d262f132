"""What a distillation of a classifier reports: one row per model, all scored on the same test images."""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from effarch.data.images import ImageSets
from effarch.eval.report import results_table, write_report
from effarch.eval.scores import accuracy, class_distance
from effarch.models.classifier import Classifier
from effarch.models.lm import parameter_count
from effarch.training.faults import StopSignal
from train.results import what_was_run

if TYPE_CHECKING:
    from train.distill_classifier import DistillClassifierConfig


class ClassResults:
    """The table of a run, kept in its folder from the first row on, so that a run that goes on has all of them."""

    def __init__(self, folder: Path, config: "DistillClassifierConfig", sets: ImageSets, stop: StopSignal) -> None:
        self.folder, self.config, self.sets, self.stop = folder, config, sets, stop
        self._file = folder / "results.json"
        self.rows: dict[str, dict[str, Any]] = json.loads(self._file.read_text()) if self._file.exists() else {}
        self.teacher: Classifier | None = None

    def measure(self, name: str, model: Classifier) -> None:
        """A row: accuracy on the test set, and how far the teacher is."""
        self.teacher = model if name == "teacher" else self.teacher
        size = min(self.config.batch_size, len(self.sets.test))
        row = {"name": name, "accuracy": accuracy(model, self.sets.test.in_order(size))}
        if self.teacher is not None and name != "teacher":
            kl, agreement = class_distance(model, self.teacher, self.sets.test.in_order(size))
            row |= {"kl_bits": kl, "agreement": agreement}
        self.rows[name] = row | {"parameters": parameter_count(model), "reference": name == "teacher"}
        self._file.write_text(json.dumps(self.rows))

    def write(self) -> None:
        """``report.html``, ``report.json``, and the table on the terminal."""
        rows = list(self.rows.values())
        mixer = self.config.student.mixer.type_name
        last = next(row for row in reversed(rows) if "after" in row["name"])
        images = {"set": self.config.data.type_name, "digest": self.sets.digest}
        report = {
            "title": f"{self.config.run_name}: a Transformer distilled into {mixer}",
            "summary": f"The student finds the class of {last['accuracy']:.1%} of {len(self.sets.test)} test images.",
            "run": {**what_was_run("train.distill_classifier"), "images": images, "seed": self.config.seed},
            "models": rows,
            "student": last["name"],
        }
        write_report(self.folder, report)
        print(results_table(rows).plain())
        print(f"\nreport: {self.folder / 'report.html'}")
