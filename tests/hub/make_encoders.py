"""Writes the golden files of encoders: ``python -m tests.hub.make_encoders [name ...]``. Needs ``oracles``."""

import json
import sys

import numpy as np

from tests.hub import encoders

if __name__ == "__main__":
    encoders.FOLDER.mkdir(exist_ok=True)
    for name in sys.argv[1:] or encoders.CASES:
        shapes, answers = encoders.make(name)
        path = encoders.FOLDER / f"{name}.npz"
        np.savez_compressed(path, **answers, shapes=np.asarray(json.dumps(shapes)))
        print(f"{path.name}: {path.stat().st_size / 1000:.0f} kB")
