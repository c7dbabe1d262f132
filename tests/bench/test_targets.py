"""Compiling for accelerators that are not here: in processes of their own, with the environment that they ask for."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

import effarch.mixers  # noqa: F401  (registers)
from effarch.bench import estimate, targets
from effarch.bench.products import KINDS
from effarch.bench.run import ask
from effarch.bench.subject import Subject
from effarch.cli import run
from effarch.config import UserError

ROOT = Path(__file__).parents[2]

PROGRAM = """
import dataclasses, json, sys
import jax, jax.numpy as jnp
from effarch.bench.estimate import compile_for
from effarch.bench.targets import get
from effarch.ops.platform import platform

class Program:
    flops, bytes = 7, 11
    def arguments(self, key):
        return jax.random.normal(key, (256, 128), jnp.bfloat16), jnp.zeros((12, 256, 128), jnp.bfloat16)
    def run(self, x, xs):
        assert platform() == {"cuda": "gpu"}.get(get(sys.argv[1]).platform, "tpu")
        return jax.lax.scan(lambda c, x: (c + x @ (x.T @ x), None), x, xs)[0]

class Until(Program):
    def run(self, x, xs):
        return jax.lax.while_loop(lambda x: x.sum() < 1, lambda x: x @ (x.T @ x), x)

class Huge(Program):
    def arguments(self, key):
        return (jax.random.normal(key, (2**18, 2**18), jnp.bfloat16),)
    def run(self, x):
        return (x + 1) @ x

print(json.dumps([dataclasses.asdict(compile_for(get(sys.argv[1]), p())) for p in (Program, Until, Huge)]))
"""


@pytest.mark.parametrize("name", targets.TARGETS)
def test_a_program_compiles_for_a_target_and_one_too_large_does_not_fit(name):
    target = targets.get(name)
    if reason := target.missing():
        pytest.skip(reason)
    environment = {k: v for k, v in os.environ.items() if k != "XLA_FLAGS"} | target.environment()
    path = os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])
    command = [sys.executable, "-c", PROGRAM, name]
    done = subprocess.run(
        command, capture_output=True, text=True, timeout=300, env=environment | {"PYTHONPATH": path}, cwd=ROOT
    )
    assert done.returncode == 0, done.stderr
    small, until, huge = json.loads(done.stdout)
    assert small["source"] == "compiled" and small["reason"] == ""
    assert small["flops"] == 12 * 2 * 2 * 256 * 128 * 128 and small["counts"]["loops"] == 12
    assert small["memory"]["arguments"] == 13 * 256 * 128 * 2
    assert small["seconds"] >= small["flops"] / target.peaks["bf16"]
    assert (until["source"], until["flops"], until["counts"]["loops"]) == ("formula", 7, None)
    assert until["seconds"] == max(7 / target.peaks["bf16"], 11 / target.bandwidth)
    assert huge["seconds"] is None and huge["reason"].startswith("does not fit (")
    assert int(huge["reason"].split("(")[1].split()[0]) >= 2**37


def test_targets_are_what_their_names_say():
    assert {"v5e", "v5p", "v6e", "h100", "h200"} <= set(targets.TARGETS)
    for name, target in targets.TARGETS.items():
        assert target.name == name and set(target.peaks) == set(KINDS)
        assert target.environment()["JAX_PLATFORMS"] == "cpu"
        assert target.peaks["bf16"] >= target.peaks["f32"] >= target.peaks["f32_highest"]
    with pytest.raises(UserError, match='did you mean "v5e"'):
        targets.get("v5ee")


def test_a_missing_compiler_is_one_line_that_names_the_extra(monkeypatch):
    monkeypatch.setattr(targets, "_found", lambda module: False)
    for name, extra in (("v5p", "tpu"), ("h100", "cuda12")):
        with pytest.raises(UserError, match=rf"{name}.*pip install 'effarch\[{extra}\]'$"):
            targets.get(name).device()


@pytest.mark.parametrize(
    "message, expected",
    [
        (
            "RESOURCE_EXHAUSTED: Ran out of memory on HBM, the total memory required for HLO temporaries (256.00G) "
            "exceeds available HBM (15.75G).",
            f"does not fit ({256 * 2**30} bytes)",
        ),
        (
            "RESOURCE_EXHAUSTED: Ran out of memory in memory space hbm. Used 20.50G of 15.75G hbm. Exceeded hbm "
            "capacity by 4.75G.\n\nTotal hbm usage >= 21.00G:\n    reserved 258.00M",
            f"does not fit ({int(20.5 * 2**30)} bytes)",
        ),
        ("RESOURCE_EXHAUSTED: out of something", "does not fit"),
    ],
)
def test_what_does_not_fit_is_told_in_bytes(message, expected):
    assert estimate.does_not_fit(estimate.needed(message)) == expected


def test_the_roofline_is_the_longer_of_computing_and_moving():
    v5e = targets.get("v5e")
    assert estimate.roofline(v5e, {"bf16": 197 * 10**12}, 819) == (1.0, "compute")
    assert estimate.roofline(v5e, {"f32_highest": 197 * 10**12}, 819)[0] == pytest.approx(6.0)
    assert estimate.roofline(v5e, {"bf16": 197}, 2 * 819 * 10**9) == (2.0, "memory")
    assert estimate.roofline(v5e, None, 1) == (None, "")


def test_the_command_compiles_for_targets_and_names_mistakes(capsys, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    assert run(["bench", "targets=[v5ee]"]) == 2
    assert 'did you mean "v5e"' in capsys.readouterr().err
    words = ["bench", "mixers=[retnet]", "dim=64", "lengths=[64,128]", "targets=[v5e]", "baselines=false"]
    with monkeypatch.context() as patch:
        patch.setattr(targets, "_found", lambda module: False)
        assert run(words) == 2
        assert "pip install 'effarch[tpu]'" in capsys.readouterr().err
    if reason := targets.get("v5e").missing():
        pytest.skip(reason)
    monkeypatch.delenv("XLA_FLAGS", raising=False)
    assert run(words) == 0
    told = capsys.readouterr().out
    assert "compiled for v5e: memory exact, time estimated" in told and "(estimated)" in told and "retnet" in told


def test_what_a_target_has_is_asked_of_the_target():
    """No kernel on a CPU, one on a TPU; its products are hidden, so that its time is a bound."""
    fields = {"name": "softmax_platform", "dtype": "bfloat16", "length": 256, "heads": 2, "head_dim": 128}
    assert "a CPU has" in ask({"subject": Subject(**fields).model_dump(mode="json")})["reason"]
    if reason := targets.get("v5e").missing():
        pytest.skip(reason)
    subject = Subject(**fields, target="v5e")
    row = ask({"subject": subject.model_dump(mode="json")}, target="v5e")
    assert row["reason"] == "" and row["source"] == "formula" and row["estimated_seconds"] > 0
