"""Exponents, crossings and break-even, on curves whose answers are known."""

import math

import numpy as np
import pytest

from effarch.bench.fits import break_even, crossover, fit
from tests.tolerances import TOL, assert_close

LENGTHS = (8192, 16384, 32768, 65536, 131072)


@pytest.mark.parametrize("power", [1.0, 1.5, 2.0])
def test_the_exponent_of_a_power_is_the_power(power):
    found = fit({t: 3e-4 * t**power for t in LENGTHS})
    assert_close(found.exponent, power, TOL.f64)
    assert_close(found.per_token, 3e-4 * LENGTHS[-1] ** (power - 1), TOL.f64)
    assert found.high - found.low < 1e-6 and found.lengths == LENGTHS


def test_constants_of_short_lengths_do_not_count():
    values = {t: 1.0 + 1e-9 * t for t in (128, 256, 512)} | {t: 1e-3 * t for t in LENGTHS}
    assert_close(fit(values).exponent, 1.0, TOL.f64)
    short = fit({t: float(t) for t in (128, 256, 512, 1024)})  # nothing reaches 8k: the larger half
    assert short.lengths == (512, 1024)


def test_the_interval_holds_the_truth_nineteen_times_of_twenty():
    rng = np.random.default_rng(0)
    fits = [fit({t: t * math.exp(0.05 * rng.normal()) for t in LENGTHS}) for _ in range(400)]
    assert 0.92 < np.mean([f.low <= 1.0 <= f.high for f in fits]) < 0.98


def test_fewer_than_two_values_fit_nothing():
    assert fit({}) is None and fit({8192: 1.0}) is None and fit({8192: 1.0, 16384: 0.0}) is None
    two = fit({8192: 1.0, 16384: 2.0})
    assert two.low == two.exponent == two.high  # no freedom left to be uncertain with


def test_crossings_are_interpolated():
    quadratic = {t: float(t) ** 2 for t in (256, 1024, 4096)}
    linear = {t: 700.0 * t for t in (256, 1024, 4096)}
    assert_close(crossover(linear, quadratic), 700.0, TOL.f64)
    assert crossover(quadratic, linear) == math.inf
    assert crossover({t: v / 1e6 for t, v in linear.items()}, quadratic) == 256
    assert crossover(linear, {256: 1.0}) is None


def test_what_is_faster_again_only_at_the_end_counts_from_there():
    theirs = dict.fromkeys((1, 2, 4, 8), 1.0)
    assert 4 < crossover({1: 0.5, 2: 0.5, 4: 1.5, 8: 0.5}, theirs) < 8


def test_break_even_is_the_first_length_where_the_state_is_no_larger():
    assert break_even(lambda _: 1000, lambda t: 16 * t) == 63
    assert break_even(lambda _: 1008, lambda t: 16 * t) == 63
    assert break_even(lambda t: 17 * t + 1, lambda t: 16 * t) == math.inf
