import jax.numpy as jnp
import pytest

from effarch.training.profile import ProfileConfig, Profiler


def steps(folder, config: ProfileConfig, first: int, last: int) -> list[str]:
    """Takes the steps from ``first`` to ``last``; the names of the files that were written."""
    with Profiler(folder, config) as profiler:
        for step in range(first, last):
            profiler.before(step)
            profiler.after(step + 1, jnp.ones(8).sum())
    return sorted(path.name for path in (folder / "profile").rglob("*") if path.is_file())


@pytest.mark.parametrize(("first", "last"), [(0, 6), (3, 6), (0, 3)])  # a run, one that goes on, one that ends early
def test_the_steps_asked_for_are_traced(tmp_path, first, last):
    names = steps(tmp_path, ProfileConfig(start=2, steps=2), first, last)
    assert any(name.endswith(".xplane.pb") for name in names)


def test_nothing_is_traced_unasked(tmp_path):
    assert steps(tmp_path, ProfileConfig(), 0, 20) == []
    assert steps(tmp_path, ProfileConfig(start=2, steps=2), 4, 6) == []  # a run that goes on after them
    assert not (tmp_path / "profile").exists()
