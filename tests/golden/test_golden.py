"""Our operations and mixers against independent code, run once and committed (``make.py``)."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.golden import case
from tests.golden.cotangents import cotangents
from tests.tolerances import TOL, assert_close


def stored(name: str, kind: str) -> dict[str, np.ndarray]:
    with np.load(case.FOLDER / f"{name}.npz") as file:
        return {key.removeprefix(f"{kind}."): file[key] for key in file.files if key.startswith(f"{kind}.")}


@pytest.mark.parametrize("name", case.NAMES)
def test_outputs_states_and_gradients_are_those_of_independent_code(name):
    module, (inputs, weights) = case.load(name), case.arrays(name)
    expected, expected_gradients = stored(name, "output"), stored(name, "gradient")
    pulled = cotangents(expected)

    @jax.jit
    def run(inputs, weights):
        moving = {key: x for key, x in inputs.items() if key in expected_gradients}
        outputs, pull = jax.vjp(lambda moving: module.ours(**{**inputs, **moving}, **weights), moving)
        return outputs, pull({key: jnp.asarray(x) for key, x in pulled.items()})[0]

    outputs, gradients = run(inputs, weights)
    for found, wanted, tolerance in (
        (outputs, expected, TOL.f32_forward),
        (gradients, expected_gradients, TOL.f32_grad),
    ):
        assert set(found) == set(wanted)
        for key in wanted:
            assert_close(found[key], wanted[key], tolerance, key)


def test_files_are_small_and_all_are_used():
    files = {path.stem: path.stat().st_size for path in case.FOLDER.glob("*.npz")}
    assert sorted(files) == case.NAMES
    assert max(files.values()) < 100_000


@pytest.mark.oracle
@pytest.mark.parametrize("name", case.NAMES)
def test_the_independent_code_still_says_so(name):
    for package in ("torch", "transformers", "rwkv"):
        pytest.importorskip(package, reason="needs the extra `oracles`")
    from tests.golden import make

    with np.load(case.FOLDER / f"{name}.npz") as file:
        for key, x in make.run(name).items():
            assert_close(x, file[key], TOL.f32_forward, key)
