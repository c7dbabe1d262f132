"""The golden cases, found by their files: ``cases/<name>.py`` beside ``cases/<name>.npz``.

A case has

    inputs(rng) -> dict         arrays whose gradients are compared
    weights(rng) -> dict        optional: arrays that are given, but whose gradients are not compared (parameters)
    independent(**arrays)       dict of outputs, in torch
    ours(**arrays)              the same outputs, in jax
"""

import importlib
from pathlib import Path

import numpy as np

FOLDER = Path(__file__).parent / "cases"
NAMES = sorted(path.stem for path in FOLDER.glob("*.py") if path.stem != "__init__")


def load(name: str):
    """The module of a case."""
    return importlib.import_module(f"tests.golden.cases.{name}")


def arrays(name: str) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
    """Inputs and weights of a case, float32 where they are real; each case has a seed of its own."""
    case = load(name)
    rng = np.random.default_rng(sum(map(ord, name)))
    draws = [case.inputs(rng), case.weights(rng) if hasattr(case, "weights") else {}]
    inputs, weights = ({key: _single(x) for key, x in draw.items()} for draw in draws)
    return inputs, weights


def _single(x: np.ndarray) -> np.ndarray:
    return x.astype(np.float32) if np.issubdtype(x.dtype, np.floating) else x
