"""Help for calling independent code. Needs the extra `oracles` when called, not when imported."""

import importlib.util
from pathlib import Path


def naive(path: str):
    """A module of flash-linear-attention, by its path below ``fla/ops``, loaded by file: the package wants Triton."""
    root = Path(importlib.util.find_spec("fla").submodule_search_locations[0])
    spec = importlib.util.spec_from_file_location(f"naive_{path.replace('/', '_')}", root / "ops" / f"{path}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def heads_first(*arrays):
    """``[B, T, H, ...] -> [B, H, T, ...]`` and back."""
    return [x.transpose(1, 2) for x in arrays]
