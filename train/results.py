"""What a distillation shows for itself: scores of every model, one table, the report of the run's folder."""

import json
import os
import platform
import shlex
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from effarch.bench.evaluate import measured
from effarch.data.prepare import Prepared
from effarch.distill.transfer import StudentConfig
from effarch.eval.recipes import CONVERTED, SCRATCH, TEACHER
from effarch.eval.report import costs_table, results_table, strict, write_report
from effarch.eval.suite import Suite
from effarch.mixers.sliding_window import SlidingWindow
from effarch.models.generate import Sampling, generate
from effarch.models.lm import LM
from effarch.parallel.processes import any_of, of_this_process, on_first
from effarch.training.faults import EXIT_SIGTERM, StopSignal
from effarch.training.run import versions, write_atomic
from train.loop import Stopped

if TYPE_CHECKING:
    from effarch.experiment.distill import DistillConfig

SAMPLE_TOKENS = 400


def windowed(config: "DistillConfig") -> StudentConfig:
    """The training-free baseline: the teacher's weights under a window with sinks."""
    return StudentConfig(mixer=SlidingWindow(window=config.eval.window, sinks=config.eval.sinks))


def what_was_run(module: str) -> dict[str, Any]:
    """The command, versions and machine, for a report."""
    return {
        "command": shlex.join(["python", "-m", module, *sys.argv[1:]]),
        "versions": versions(),
        "machine": f"{platform.system()} {platform.machine()}, {os.cpu_count()} cores",
    }


class Results:
    """Scores by model, kept in ``scores.json`` so that a run that goes on does not measure again what it has.

    Of several processes, the first measures.

    Args:
      folder: of the run. config: of the run. prepared: its data. teacher: what KL is measured against. stop: checked
        after every measurement. known: scores of models that another run has measured on the same rows, by name.
    """

    def __init__(
        self,
        folder: Path,
        config: "DistillConfig",
        prepared: Prepared,
        teacher: LM,
        stop: StopSignal,
        known: Mapping[str, dict[str, Any]],
    ) -> None:
        self.folder, self.config, self.prepared, self.stop, self._known = folder, config, prepared, stop, known
        self.teacher = of_this_process(teacher)
        self.window_name = f"teacher, window {config.eval.window} + {config.eval.sinks} sinks"
        self._path = folder / "scores.json"
        self._models: dict[str, dict[str, Any]] = on_first(self._there)
        self._suite = Suite(prepared, config.eval, config.batch_size, self.teacher)

    def _there(self) -> dict[str, dict[str, Any]]:
        return json.loads(self._path.read_text()) if self._path.exists() else {}

    @property
    def models(self) -> dict[str, dict[str, Any]]:
        """The scores so far; of the students, the one from scratch comes last."""
        return dict(sorted(self._models.items(), key=lambda item: item[0] == SCRATCH))

    def measure(self, name: str, lm: LM) -> None:
        """Scores a model, unless it was scored before.

        Raises:
          Stopped: a signal came meanwhile.
        """
        if name not in self._models:
            lm = of_this_process(lm)
            self._models[name] = self._known.get(name) or on_first(lambda: self._measured(name, lm))
        if any_of(self.stop.requested):
            raise Stopped(self.stop.exit_code or EXIT_SIGTERM)

    def _measured(self, name: str, lm: LM) -> dict[str, Any]:
        print(f"measuring {name}", file=sys.stderr, flush=True)
        theirs = None if name == TEACHER else self.teacher.config
        found = measured(lm, self._suite, self.config.eval.contexts, theirs)
        write_atomic(self._path, json.dumps(self._models | {name: found}))
        return found

    def write(self, student: LM, prompt: str) -> dict[str, Any]:
        """Prints the tables; writes ``report.html``, ``report.json`` and ``sample.txt``; returns the report."""
        tokenizer = self.prepared.tokenizer
        ids = [int(i) for i in tokenizer.encode(prompt, bos=True)]
        sampling = Sampling(temperature=0.7, top_p=0.95)
        (new,) = generate(
            student, [ids], max_new_tokens=SAMPLE_TOKENS, sampling=sampling, stop_tokens=tokenizer.stop_tokens
        )
        text = tokenizer.continuation(ids, new)
        write_atomic(self.folder / "sample.txt", prompt + text + "\n")
        trained = self._trained()
        models = [
            {"name": name, "reference": name == TEACHER, **trained.get(name, {}), **scores}
            for name, scores in self.models.items()
        ]
        mixer = self.config.student.mixer.type_name
        title = f"{self.config.run_name}: a Transformer distilled into {mixer}"
        distilled = [name for name in self.models if name != SCRATCH][-1]
        report = {
            "title": title,
            "summary": _summary(self.models, distilled),
            "run": {
                **what_was_run("train.distill"),
                "corpus": self.prepared.meta["inputs"]["source"]["type"],
                "corpus digest": self.prepared.meta["inputs"]["digest"],
                "seed": self.config.seed,
                "evaluation": self.config.eval.model_dump(mode="json"),
            },
            "window": self.config.eval.window,
            "models": models,
            "student": distilled,
            "notes": self._suite.notes,
            "curves": self._curves(),
            "sample": {"prompt": prompt, "text": text},
            "card": {
                "base_model": self.config.base_model,
                "license": self.config.license,
                "tags": [mixer],
            },
        }
        write_report(self.folder, report)
        print(results_table(models).plain(width=120), costs_table(models).plain(width=120), sep="\n\n")
        for note in self._suite.notes:
            print(f"\nnote: {note}")
        print(f"\nreport: {self.folder / 'report.html'}")
        return strict(report)

    def _trained(self) -> dict[str, dict[str, Any]]:
        """Tokens and wall time of each training, from the logs; what was not trained saw none."""
        found = {CONVERTED: {"tokens": 0}, self.window_name: {"tokens": 0}}
        teacher = Path(self.config.teacher.path or Path(self.config.output_dir) / "teacher")
        for name, folder in ((TEACHER, teacher), (SCRATCH, self.folder / "scratch"), (None, self.folder)):
            for row in _log(folder):
                cost = {key: row[key] for key in ("tokens", "seconds") if key in row}
                found[name or f"student, after {row['phase']}"] = cost  # the last of a phase says it all
        return found

    def _curves(self) -> list[dict[str, Any]]:
        metrics = {"align": "normalised squared error of mixer outputs"}
        curves: dict[tuple[str, str], list[dict[str, Any]]] = {}
        for folder in (self.folder, self.folder / "scratch"):
            for row in _log(folder):
                metric = metrics.get(row["phase"].split()[0], "nats per token")
                curves.setdefault((row["phase"], metric), []).append(row)
        return [{"phase": phase, "metric": metric, "rows": rows} for (phase, metric), rows in curves.items()]


def _log(folder: Path) -> list[dict[str, Any]]:
    """The lines of a run's metrics; none where there are none."""
    path = folder / "metrics.jsonl"
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def _summary(models: dict[str, dict[str, Any]], student: str) -> str:
    converted, found = models.get(CONVERTED, {}).get("kl_bits"), models[student]
    share = f", {found['kl_bits'] / converted:.0%} of what conversion left" if converted else ""
    return (
        f"The distilled student is {found['kl_bits']:.3f} bits per token from its teacher{share}, "
        f"at {found['bits_per_byte']:.3f} bits per byte "
        f"against the teacher's {models[TEACHER]['bits_per_byte']:.3f}."
    )
