import json
import math
import os
import sys

import jax.numpy as jnp
import pytest

from effarch.config import UserError
from effarch.training.metrics import Deferred, MetricsLog, Throughput, progress


def read(folder):
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def test_lines_after_the_step_are_dropped_on_resume(tmp_path):
    with MetricsLog(tmp_path) as log:
        for step in range(1, 6):
            log.write(step, {"loss": step / 2})
        assert len(read(tmp_path)) == 5  # readable while the run goes on
    with open(tmp_path / "metrics.jsonl", "a") as file:
        file.write('{"step": 3, "lo')  # torn by a kill
    with MetricsLog(tmp_path, step=3) as log:
        log.write(4, {"loss": 9.0, "stage": "logits"})
    assert [line["step"] for line in read(tmp_path)] == [1, 2, 3, 4]
    assert read(tmp_path)[-1] == {"step": 4, "loss": 9.0, "stage": "logits"}
    assert os.listdir(tmp_path) == ["metrics.jsonl"]
    MetricsLog(tmp_path, step=0).close()
    assert read(tmp_path) == []


def test_what_json_cannot_say_is_null(tmp_path):
    with MetricsLog(tmp_path) as log:
        log.write(1, {"loss": math.nan, "norm": math.inf})
    assert read(tmp_path) == [{"step": 1, "loss": None, "norm": None}]


def test_tensorboard_is_an_extra(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "tensorboardX", None)
    with pytest.raises(UserError, match="log.tensorboard: expected the extra `tensorboard`"):
        MetricsLog(tmp_path, tensorboard=True)
    assert not list(tmp_path.iterdir())


def test_metrics_come_one_step_late():
    deferred = Deferred()
    assert deferred.push(1, {"loss": jnp.float32(1.5)}) is None
    assert deferred.push(2, {"loss": jnp.float32(2.5)}) == (1, {"loss": 1.5})
    assert deferred.flush() == (2, {"loss": 2.5})
    assert deferred.flush() is None


def test_throughput(monkeypatch):
    clock = iter([10.0, 12.0])
    monkeypatch.setattr("time.perf_counter", lambda: next(clock))
    rate = Throughput(tokens=100)
    assert rate(3) == 0.0
    assert rate(7) == 200.0


def test_progress_without_a_terminal(capsys):
    with progress(50, "train", start=20) as advance:
        for step in range(21, 51):
            advance(step, f"loss {step}")
    lines = capsys.readouterr().err.splitlines()
    assert [line.split()[1] for line in lines] == ["25/50", "30/50", "35/50", "40/50", "45/50", "50/50"]
    assert lines[0].startswith("train: 25/50 (") and lines[0].endswith("loss 25")
