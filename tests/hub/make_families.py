"""Writes the golden files of families: ``python -m tests.hub.make_families [name ...]``. Needs ``oracles``."""

import json
import sys

import numpy as np

from tests.hub import families

if __name__ == "__main__":
    families.FOLDER.mkdir(exist_ok=True)
    for name in sys.argv[1:] or families.CASES:
        shapes, logits = families.make(name)
        path = families.FOLDER / f"{name}.npz"
        np.savez_compressed(path, logits=logits, shapes=np.asarray(json.dumps(shapes)))
        print(f"{path.name}: {path.stat().st_size / 1000:.0f} kB")
