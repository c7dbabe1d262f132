"""Writes the golden files of whole models: ``python -m tests.golden.make_models [name ...]``. Needs ``oracles``."""

import sys

from tests.golden import whole

if __name__ == "__main__":
    for name in sys.argv[1:] or whole.NAMES:
        whole.save(name, whole.make(name))
        print(f"{name}.npz: {whole.file(name).stat().st_size / 1000:.0f} kB")
