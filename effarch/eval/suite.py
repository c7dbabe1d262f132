"""Every score of a model on one set of data, as a report's row; the rows are made once and shared by all models."""

from collections.abc import Iterator
from typing import Any

import numpy as np

from effarch.data.haystack import TaskName, haystack_rows
from effarch.data.long_rows import long_rows, reach, stream
from effarch.data.prepare import Prepared
from effarch.data.recall import kind_of
from effarch.data.rows import Rows
from effarch.eval.config import EvalConfig
from effarch.eval.positions import in_batches, position_scores
from effarch.eval.recall import answer_shares, recall_scores
from effarch.eval.scores import Batch, text_scores
from effarch.models.lm import LM

TASKS: tuple[TaskName, ...] = ("needle", "mqar")


def first_batches(rows: Rows, count: int, batch_size: int) -> Iterator[Batch]:
    """The first ``count`` rows, in batches of at most ``batch_size``; what does not fill a batch is left out."""
    size = min(batch_size, count)
    for _, batch in zip(range(count // size), rows.in_order(size), strict=False):
        yield batch


class Suite:
    """The rows that models are scored on.

    Args:
      prepared: the data. config: how much of it. batch_size: prepared rows per batch; rows of other lengths come in
        batches of as many tokens. teacher: what KL and agreement are measured against; None: neither is.

    Attributes:
      lengths: of the long rows, those of the config cut to what the validation text has.
      notes: what could not be measured as asked, and why; for the report.
    """

    def __init__(self, prepared: Prepared, config: EvalConfig, batch_size: int, teacher: LM | None = None) -> None:
        self._prepared, self._config, self._batch_size, self._teacher = prepared, config, batch_size, teacher
        self._batch_tokens = batch_size * prepared.validation.seq_len
        self.notes: list[str] = []
        self.lengths = reach(prepared.validation, config.lengths) if config.lengths else ()
        if beyond := sorted(set(config.lengths) - set(self.lengths)):
            asked = ", ".join(map(str, beyond))
            self.notes.append(f"eval.lengths: the validation text has {max(self.lengths)} tokens, less than {asked}")
        self._long = {length: long_rows(prepared.validation, length, config.tokens) for length in self.lengths}
        self._haystacks = {task: self._planted(task) for task in TASKS} if config.depths and self.lengths else {}

    def _planted(self, task: TaskName) -> dict[int, dict[str, np.ndarray]]:
        """{length: rows of a task}; lengths too short for one are named in the notes."""
        found, config = {}, self._config
        text, _ = stream(self._prepared.validation, 4 * max(self.lengths, default=0))
        for length in self.lengths:
            try:
                found[length] = haystack_rows(
                    task,
                    text,
                    self._prepared.tokenizer,
                    length,
                    config.depths,
                    trials=config.trials,
                    pairs=config.pairs,
                )
            except ValueError as error:
                self.notes.append(f"{task}: {error}")
        return found

    def scores(self, lm: LM) -> dict[str, Any]:
        """The row of a model, but for its name and what it costs; see :mod:`effarch.eval.report`."""
        config, batch_size = self._config, self._batch_size
        validation = first_batches(self._prepared.validation, config.rows, batch_size)
        text = text_scores(lm, validation, tokenizer=self._prepared.tokenizer, teacher=self._teacher)
        found: dict[str, Any] = {"bits_per_byte": text.bits_per_byte}
        if self._teacher is not None:
            found |= {"kl_bits": text.kl_bits, "agreement": text.agreement}
        if self._prepared.recall is not None:
            found |= self._recall(lm, self._prepared.recall)
        if self._long:
            perplexity = position_scores(lm, self._long, self._batch_tokens)
            found |= {"perplexity": perplexity.at, "perplexity_by_position": perplexity.curve}
        for task, rows in self._haystacks.items():
            if rows:
                found[task] = {length: self._by_depth(lm, batch) for length, batch in rows.items()}
                found[f"{task}_mean"] = float(np.mean([list(cells.values()) for cells in found[task].values()]))
        return found

    def _recall(self, lm: LM, rows: Rows) -> dict[str, Any]:
        size = min(self._batch_size, self._config.rows)
        kinds = (np.array([kind_of(i) for i in range(start, start + size)]) for start in range(0, len(rows), size))
        plain = first_batches(rows, self._config.rows, size)
        batches = ({**batch, "kind": kind} for batch, kind in zip(plain, kinds, strict=False))
        recall = recall_scores(lm, batches, self._config.window)
        return {
            "recall_within": recall.within,
            "recall_beyond": recall.beyond,
            "recall_by_distance": recall.by_distance,
            "recall_by_kind": {kind: {"within": near, "beyond": far} for kind, (near, far) in recall.by_kind.items()},
        }

    def _by_depth(self, lm: LM, rows: dict[str, np.ndarray]) -> dict[str, float]:
        """{depth: share of the answers that are right}."""
        parts = [answer_shares(lm, batch) for batch in in_batches(rows, self._batch_tokens)]
        shares = np.concatenate(parts)[: len(rows["tokens"])].reshape(len(self._config.depths), -1)
        means = shares.mean(axis=1).tolist()
        return {f"{depth:g}": mean for depth, mean in zip(self._config.depths, means, strict=True)}
