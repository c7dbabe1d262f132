"""Exponents: of exact powers, of a mixer, and through the command."""

import pytest

from effarch.bench.scaling import exponent, measure
from effarch.cli import run
from effarch.mixers.retnet import RetNet
from tests.tolerances import TOL, assert_close


@pytest.mark.parametrize("power", [1.0, 1.5, 2.0])
def test_the_exponent_of_a_power_is_the_power(power):
    lengths = (256, 512, 1024, 4096)
    assert_close(exponent(lengths, [3e-4 * t**power for t in lengths]), power, TOL.f64)


def test_retention_is_linear_in_memory():
    found = measure(*RetNet.tiny(), (2048, 4096, 8192), repeats=1)
    assert all(seconds > 0 for seconds in found.seconds) and found.bytes_per_token > 0
    assert 0.9 < found.memory_exponent <= 1.05


def test_the_command_prints_a_row_per_mixer_and_names_mistakes(capsys):
    assert run(["bench", "mixers=[retnet]", "lengths=[64,128]", "repeats=1"]) == 0
    assert "retnet" in capsys.readouterr().out
    assert run(["bench", "mixers=[retnett]"]) == 2
    assert 'unknown mixer "retnett"; did you mean "retnet"' in capsys.readouterr().err.replace(",", ";")
    assert run(["bench", "mixers=[retnet]", "lengths=[64]"]) == 2
    assert "lengths: expected at least two" in capsys.readouterr().err
