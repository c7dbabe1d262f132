"""What a distillation shows for itself: scores of every model, one table, the report of the run's folder."""

import json
import os
import platform
import shlex
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from effarch.bench.decode import decode_speeds
from effarch.data.prepare import Prepared
from effarch.distill.transfer import StudentConfig
from effarch.eval.report import results_table, write_report
from effarch.eval.scores import recall_scores, text_scores
from effarch.mixers.sliding_window import SlidingWindow
from effarch.models.generate import Sampling, generate
from effarch.models.lm import LM, parameter_count
from effarch.training.faults import StopSignal
from effarch.training.metrics import progress
from effarch.training.run import versions, write_atomic
from train.loop import Stopped
from train.pretrain import validation

if TYPE_CHECKING:
    from train.distill import DistillConfig

CONTEXTS = (1024, 16384)  # tokens of context that decoding is timed at
STATES = (1024, 16384, 2**20)  # tokens of context that states are sized at
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

    Args:
      folder: of the run. config: of the run. prepared: its data. teacher: what KL is measured against. stop: checked
        after every measurement.
    """

    def __init__(
        self, folder: Path, config: "DistillConfig", prepared: Prepared, teacher: LM, stop: StopSignal
    ) -> None:
        self.folder, self.config, self.prepared, self.teacher, self.stop = folder, config, prepared, teacher, stop
        self.window_name = f"teacher, window {config.eval.window} + {config.eval.sinks} sinks"
        self._path = folder / "scores.json"
        self.models: dict[str, dict[str, Any]] = json.loads(self._path.read_text()) if self._path.exists() else {}

    def measure(self, name: str, lm: LM) -> None:
        """Scores a model, unless it was scored before.

        Raises:
          Stopped: a signal came meanwhile.
        """
        if name not in self.models:
            self.models[name] = self._scores(name, lm)
            write_atomic(self._path, json.dumps(self.models))
        if self.stop.requested:
            raise Stopped(self.stop.exit_code)

    def _scores(self, name: str, lm: LM) -> dict[str, Any]:
        config = self.config
        with progress(3, f"measuring {name}") as advance:
            held_out = validation(self.prepared, config)
            text = text_scores(lm, held_out, tokenizer=self.prepared.tokenizer, teacher=self.teacher)
            advance(1)
            scores: dict[str, Any] = {"bits_per_byte": text.bits_per_byte, "kl_bits": text.kl_bits}
            if self.prepared.recall is not None:
                size = min(config.batch_size, config.eval.rows)
                rows = zip(range(config.eval.rows // size), self.prepared.recall.in_order(size), strict=False)
                recall = recall_scores(lm, (batch for _, batch in rows), config.eval.window)
                scores |= {
                    "recall_within": recall.within,
                    "recall_beyond": recall.beyond,
                    "recall_by_distance": recall.by_distance,
                }
            advance(2)
            speeds = decode_speeds(lm, CONTEXTS)
            advance(3)
        return scores | {
            "parameters": parameter_count(lm),
            "state_bytes": {context: lm.config.state_bytes(context) for context in STATES},
            "decode_tokens_per_s": speeds,
        }

    def write(self, student: LM, prompt: str) -> None:
        """Prints the table; writes ``report.html``, ``report.json`` and ``sample.txt``."""
        tokenizer = self.prepared.tokenizer
        ids = [int(i) for i in tokenizer.encode(prompt, bos=True)]
        sampling = Sampling(temperature=0.7, top_p=0.95)
        (new,) = generate(
            student, [ids], max_new_tokens=SAMPLE_TOKENS, sampling=sampling, stop_tokens=tokenizer.stop_tokens
        )
        text = tokenizer.continuation(ids, new)
        write_atomic(self.folder / "sample.txt", prompt + text + "\n")
        models = [{"name": name, "reference": name == "teacher", **scores} for name, scores in self.models.items()]
        mixer = self.config.student.mixer.type_name
        write_report(
            self.folder,
            {
                "title": f"{self.config.run_name}: a Transformer distilled into {mixer}",
                "summary": _summary(self.models),
                "run": {
                    **what_was_run("train.distill"),
                    "corpus": self.prepared.meta["inputs"]["source"]["type"],
                    "corpus digest": self.prepared.meta["inputs"]["digest"],
                    "seed": self.config.seed,
                },
                "window": self.config.eval.window,
                "models": models,
                "curves": self._curves(),
                "sample": {"prompt": prompt, "text": text},
            },
        )
        print(results_table(models).plain())
        print(f"\nreport: {self.folder / 'report.html'}")

    def _curves(self) -> list[dict[str, Any]]:
        metrics = {"align": "normalised squared error of mixer outputs"}
        curves: dict[tuple[str, str], list[dict[str, Any]]] = {}
        for path in (self.folder / "metrics.jsonl", self.folder / "scratch" / "metrics.jsonl"):
            for line in path.read_text().splitlines() if path.exists() else []:
                row = json.loads(line)
                metric = metrics.get(row["phase"], "nats per token")
                curves.setdefault((row["phase"], metric), []).append(row)
        return [{"phase": phase, "metric": metric, "rows": rows} for (phase, metric), rows in curves.items()]


def _summary(models: dict[str, dict[str, Any]]) -> str:
    last = list(models)[-1]
    converted = models.get("student, converted", {}).get("kl_bits")
    kl = models[last]["kl_bits"]
    share = f", {kl / converted:.0%} of what conversion left" if converted else ""
    return (
        f"The distilled student is {kl:.3f} bits per token from its teacher{share}, "
        f"at {models[last]['bits_per_byte']:.3f} bits per byte "
        f"against the teacher's {models['teacher']['bits_per_byte']:.3f}."
    )
