"""No mixer or op becomes quadratic or fatter than the committed figures; the guard itself notices when one does."""

import jax
import jax.numpy as jnp
import pytest

from tests.bench import guard
from tests.bench.traced import Traced, count


@pytest.mark.parametrize(
    "subject",
    [
        pytest.param(subject, marks=pytest.mark.xdist_group(f"guard {number % 2}"))
        for number, subject in enumerate(guard.SUBJECTS)
    ],
)
def test_nothing_is_quadratic_or_fatter_than_it_was(subject):
    known = guard.baseline()
    once, twice = guard.measure(subject, compiles=known is not None)
    assert guard.growth(subject, once, twice) == []
    if known is None:
        pytest.skip(f"no figures for {guard.environment()} in baseline.json: growth alone is held")
    assert subject in known, f"{subject}: no figures yet; run {guard.COMMAND} {subject}"
    assert guard.fatter(subject, known[subject], twice) == []


def test_the_baseline_has_no_figures_of_what_is_gone():
    assert set(guard.baseline() or {}) <= set(guard.SUBJECTS)


def test_a_larger_figure_is_told_with_the_command_that_accepts_it():
    before = {"flops": 1000, "temporaries": 1000}
    assert guard.fatter("gla", before, {"flops": 1050, "temporaries": 900}) == []
    (line,) = guard.fatter("gla", before, {"flops": 1000, "temporaries": 1051})
    assert "temporaries 1,000 -> 1,051 (+5.1 %)" in line and guard.COMMAND in line
    assert guard.growth("gla", {"live": 10_000}, {"live": 20_000}) == []
    (line,) = guard.growth("gla", {"live": 10_000}, {"live": 40_000})
    assert "live" in line


def test_an_array_of_tokens_by_tokens_is_noticed(monkeypatch):
    """Scores of all pairs beside the recurrence, and a chunk twice as long."""
    honest = guard._op("scalar")

    def quadratic(q, k, v, gate):
        scores = jnp.einsum("bthk,bshk->bhts", q, k)
        return honest(q, k, v, gate) + jnp.einsum("bhts,bshv->bthv", scores, v)

    monkeypatch.setattr(guard, "_op", lambda name: quadratic)
    once, twice = guard.measure("op/scalar", compiles=False)
    assert {line.split()[1] for line in guard.growth("op/scalar", once, twice)} == {"flops", "live"}


def test_products_of_scans_branches_and_calls_are_counted_exactly():
    def step(carry, x):
        return jax.lax.cond(x.sum() > 0, lambda c: c @ c @ c, lambda c: c @ c, carry), None

    def function(x, xs):
        once = jax.checkpoint(lambda x: x @ x)(x)
        return jax.lax.scan(step, jax.jit(lambda x: x @ x)(once), xs)[0]

    shapes = jax.ShapeDtypeStruct((8, 8), jnp.float32), jax.ShapeDtypeStruct((5, 3), jnp.float32)
    found = count(jax.make_jaxpr(function)(*shapes))
    assert (found.flops, found.loops) == ((2 + 5 * 2) * 2 * 8**3, 5)


def test_what_is_alive_at_once_is_not_what_was_ever_made():
    def function(x):
        for _ in range(10):
            x = x + jnp.ones((), jnp.float32)
        return jnp.concatenate([x, x])

    kilobyte = jax.ShapeDtypeStruct((256,), jnp.float32)
    found = count(jax.make_jaxpr(function)(kilobyte))
    assert found == Traced(0, 0, found.live)
    assert 3 * 1024 <= found.live < 3.1 * 1024
