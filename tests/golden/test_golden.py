"""Our operations against independent code, run once and committed (``make.py``)."""

from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.golden import inputs, ours
from tests.tolerances import TOL, assert_close

FOLDER = Path(__file__).parent


def stored(name: str, kind: str) -> dict[str, np.ndarray]:
    with np.load(FOLDER / f"{name}.npz") as file:
        return {key.removeprefix(f"{kind}."): file[key] for key in file.files if key.startswith(f"{kind}.")}


@pytest.mark.parametrize("name", list(inputs.MAKERS))
def test_outputs_states_and_gradients_are_those_of_independent_code(name):
    cotangents = {key: jnp.asarray(x) for key, x in stored(name, "cotangent").items()}

    @jax.jit
    def run(given):
        outputs, pull = jax.vjp(lambda given: getattr(ours, name)(**given), given)
        return outputs, pull(cotangents)[0]

    outputs, gradients = run({key: jnp.asarray(x) for key, x in inputs.make(name).items()})
    for found, kind, tolerance in ((outputs, "output", TOL.f32_forward), (gradients, "gradient", TOL.f32_grad)):
        expected = stored(name, kind)
        assert set(found) == set(expected)
        for key in expected:
            assert_close(found[key], expected[key], tolerance, f"{kind} {key}")


def test_files_are_small_and_all_are_used():
    files = {path.stem: path.stat().st_size for path in FOLDER.glob("*.npz")}
    assert set(files) == set(inputs.MAKERS)
    assert max(files.values()) < 100_000


@pytest.mark.oracle
@pytest.mark.parametrize("name", list(inputs.MAKERS))
def test_the_independent_code_still_says_so(name):
    pytest.importorskip("torch", reason="needs the extra `oracles`")
    pytest.importorskip("transformers", reason="needs the extra `oracles`")
    from tests.golden import make

    with np.load(FOLDER / f"{name}.npz") as file:
        for key, x in make.run(name).items():
            assert_close(x, file[key], TOL.f32_forward, key)
