"""Writes the golden files: ``python -m tests.golden.make [case ...]``. Needs the extra ``oracles`` (torch, CPU).

Every case runs its independent implementation and stores outputs and the gradients of ``sum(outputs * cotangents)`` for
every input. Cotangents are drawn anew by whoever needs them: :func:`cotangents`.
"""

import sys

import numpy as np
import torch

from tests.golden import case
from tests.golden.cotangents import cotangents


def run(name: str) -> dict[str, np.ndarray]:
    """Outputs and gradients of a case."""
    inputs, weights = case.arrays(name)
    given = {key: torch.tensor(x, requires_grad=np.issubdtype(x.dtype, np.floating)) for key, x in inputs.items()}
    outputs = case.load(name).independent(**given, **{key: torch.tensor(x) for key, x in weights.items()})
    values = {key: y.detach().numpy() for key, y in outputs.items()}
    pulled = cotangents(values)
    sum((y * torch.tensor(pulled[key])).sum() for key, y in outputs.items()).backward()
    found = {f"output.{key}": y for key, y in values.items()}
    return found | {f"gradient.{key}": x.grad.numpy() for key, x in given.items() if x.requires_grad}


if __name__ == "__main__":
    for name in sys.argv[1:] or case.NAMES:
        path = case.FOLDER / f"{name}.npz"
        np.savez_compressed(path, **run(name))
        print(f"{path.name}: {path.stat().st_size / 1000:.0f} kB")
