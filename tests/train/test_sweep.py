"""A whole sweep, tiny, in this process: what is trained once is kept, and only what is missing is trained."""

import json
import math
from pathlib import Path

import jax
import numpy as np
import pytest
from flax import nnx

import train.sweep
from effarch.config import UserError, load, main
from effarch.data.synthetic import batch
from effarch.data.synthetic.parity import Parity
from effarch.distill.objectives import answers
from effarch.models.lm import make_lm
from effarch.training.optimizer import OptimizerConfig, make_optimizer
from effarch.training.state import make_state
from effarch.training.step import make_step
from train.learner import Learner
from train.loop import Stopped
from train.records import Records
from train.sweep import SweepConfig, run

RATES = (0.02, 0.001)
WORDS = [
    "run_name=small",
    "task={type: parity, length: 3}",
    "evaluate=[{length: 2}]",
    "mixers=[{type: base_conv}, {type: base_conv, conv_width: 1}]",
    f"learning_rates={list(RATES)}",
    "steps=80",
    "batch_size=16",
    "eval_rows=64",
    "model={dim: 16, num_layers: 1, pattern: [{mixer: {type: softmax_attention, num_heads: 2, num_kv_heads: 2, "
    "head_dim: 4}, channel: null}], tie_embeddings: false}",
]


def command(root: Path, *more: str) -> int:
    return main(SweepConfig, run, argv=[*WORDS, f"output_dir={root}", *more], prog="python -m train.sweep")


def results(root: Path) -> list[dict]:
    return [json.loads(line) for line in (root / "small/results.jsonl").read_text().splitlines()]


@pytest.fixture(scope="module")
def root(tmp_path_factory) -> Path:
    """Of a finished sweep. A convolution over three tokens sees the whole row, one over a single token does not."""
    root = tmp_path_factory.mktemp("sweep")
    assert command(root) == 0
    return root


@pytest.fixture
def trained(monkeypatch) -> list[tuple[int, float]]:
    """Taps of the convolution and rate of whatever is trained from now on, which takes no time."""
    seen = []

    class Instead:
        parameters = 7

        def __init__(self, model, optimizer, steps, seed):
            self.taps = model.pattern[0].mixer.conv_width

        def learn(self, rate, batches, each):
            seen.append((self.taps, rate))
            if rate == 0.5:
                raise RuntimeError("out of luck\nmore")
            if rate == 0.25:
                raise UserError("loss: not finite")
            each(1, math.log(2))
            return type("State", (), {"skipped": 0})

        def measure(self, state, rows):
            return {name: "nothing" for name in rows}

    monkeypatch.setattr(train.sweep, "Learner", Instead)
    return seen


def test_it_learns_what_the_mixer_can_see(root):
    found = {(r["name"], r["learning_rate"]): r for r in results(root)}
    wide, narrow = "base_conv", "base_conv conv_width=1"
    assert set(found) == {(name, rate) for name in (wide, narrow) for rate in RATES}
    accuracy = {key: r["scores"]["held out"]["accuracy"] for key, r in found.items()}
    assert accuracy[wide, 0.02] > 0.99 and found[wide, 0.02]["scores"]["length=2"]["accuracy"] > 0.99
    # One token tells the first answer and nothing of the other two.
    assert 0.55 < accuracy[narrow, 0.02] < 0.8
    assert found[wide, 0.001]["scores"]["held out"]["nats"] > 0.1 + found[wide, 0.02]["scores"]["held out"]["nats"]
    report = json.loads((root / "small/report.json").read_text())
    assert [(m["name"], m["learning_rate"]) for m in report["models"]] == [(wide, "0.02"), (narrow, "0.02")]
    assert found[wide, 0.02]["state_bytes"] == {"3": 2 * 2 * 16 * 4, "2": 2 * 2 * 16 * 4}  # two inputs of width 32


def test_repeating_trains_nothing_and_says_the_same(root, trained, capsys):
    before = (root / "small/results.jsonl").read_bytes()
    assert command(root) == 0
    assert trained == [] and (root / "small/results.jsonl").read_bytes() == before
    out = capsys.readouterr().out
    assert "base_conv conv_width=1" in out and "held out, lr 0.02" in out and "report.html" in out


def test_what_is_missing_is_trained(root, trained, tmp_path):
    for name in ("config.yaml", "results.jsonl"):
        (tmp_path / "small").mkdir(exist_ok=True)
        (tmp_path / "small" / name).write_bytes((root / "small" / name).read_bytes())
    assert command(tmp_path, "learning_rates=[0.001, 0.1]", "mixers=[{type: base_conv}]") == 0
    assert trained == [(3, 0.1)]
    # The sizes of a type hold where a mixer does not say otherwise.
    sizes = ["sizes=[{type: base_conv, conv_width: 4}]", "learning_rates=[0.1]"]
    trained.clear()
    assert command(tmp_path, *sizes) == 0
    assert sorted(trained) == [(1, 0.1), (4, 0.1)]
    torn = (tmp_path / "small/results.jsonl").read_text()[:-20]  # of the last line
    (tmp_path / "small/results.jsonl").write_text(torn)
    trained.clear()
    assert command(tmp_path, *sizes) == 0
    assert trained == [(1, 0.1)]


def test_another_task_needs_another_run(root, trained, capsys):
    assert command(root, "steps=81") == 2
    assert trained == [] and "steps: the run has 80, got 81" in capsys.readouterr().err


def test_failures_are_said_and_tried_again_unless_the_loss_diverged(trained, tmp_path, capsys):
    words = ["learning_rates=[0.5, 0.25, 0.125]", "mixers=[{type: base_conv}]"]
    assert command(tmp_path, *words) == 0
    out = capsys.readouterr().out
    assert "RuntimeError: out of luck (at 0.5)" in out and "loss: not finite (at 0.25)" in out
    assert trained == [(3, 0.5), (3, 0.25), (3, 0.125)]
    trained.clear()
    assert command(tmp_path, *words) == 0
    assert trained == [(3, 0.5)]


def test_a_signal_keeps_what_is_finished(trained, tmp_path):
    config = load(SweepConfig, None, WORDS)
    records = Records(tmp_path / "results.jsonl")

    class Stop:
        exit_code = 143

        @property
        def requested(self):
            return len(trained) >= 2  # while the second is trained

    with pytest.raises(Stopped):
        train.sweep.sweep(config, records, Stop())
    kept = [json.loads(line) for line in (tmp_path / "results.jsonl").read_text().splitlines()]
    assert [(r["name"], r["learning_rate"]) for r in kept] == [("base_conv", RATES[0])]


def test_every_causal_mixer_takes_part_in_the_head_layout_of_the_model():
    models = SweepConfig().models()
    assert {"softmax_attention", "gated_deltanet", "mamba1", "hgrn"} <= set(models)
    assert not {"bidirectional", "fnet", "gmlp"} & set(models)
    mixers = {name: [block.mixer for block in model.pattern] for name, model in models.items()}
    assert all(len(m) == 1 and m[0].type_name == name for name, m in mixers.items())
    assert (mixers["deltanet"][0].num_heads, mixers["deltanet"][0].value_head_dim) == (2, 32)
    assert mixers["hgrn"][0].channels == 64


def test_an_update_is_the_optimizers_at_the_given_rate():
    """The rate is an argument of the one compiled update; a chain with the rate inside must do the same."""
    config = load(SweepConfig, None, WORDS)
    (model, _), rate, steps = config.models().values(), 0.03, 3
    optimizer = OptimizerConfig(learning_rate=9.0, warmup_steps=2, clip_norm=0.5)
    rows = [batch(Parity(length=3), (0,), n, 8) for n in range(steps)]
    learner = Learner(model, optimizer, steps, seed=5)
    losses = []
    state = learner.learn(rate, rows, lambda n, loss: losses.append(loss))

    graph, params, rest = nnx.split(jax.jit(lambda: make_lm(model, 5))(), nnx.Param, ...)
    tx, _ = make_optimizer(optimizer.replace(learning_rate=rate), steps)
    expected, update = make_state(params, rest, tx, 5), jax.jit(make_step(answers(graph), tx))
    for n in range(steps):
        expected, metrics = update(expected, rows[n])
        assert losses[n] == pytest.approx(float(metrics["loss"]), rel=1e-5)
    assert learner.parameters == sum(x.size for x in jax.tree.leaves(params))
    for a, b, start in zip(*(jax.tree.leaves(x) for x in (state.params, expected.params, params)), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6)
        assert a.ndim < 2 or np.abs(a - start).max() > 1e-3
    again = learner.learn(rate, rows, lambda n, loss: None)  # every run starts anew
    jax.tree.map(np.testing.assert_array_equal, again.params, state.params)
