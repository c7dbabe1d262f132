"""Help for calling independent code. Needs the extra `oracles` when called, not when imported."""

import contextlib
import importlib.util
import io
import os
import tempfile
import warnings
from pathlib import Path
from unittest import mock


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


def rwkv_package(*, goose: bool):
    """The authors' ``rwkv`` package as a module of its own: it is either for RWKV-7 (``goose``) or for RWKV-4 to 6."""
    path = Path(importlib.util.find_spec("rwkv").origin).parent / "model.py"
    spec = importlib.util.spec_from_file_location(f"rwkv_{'7' if goose else '4_to_6'}", path)
    module = importlib.util.module_from_spec(spec)
    said = {"RWKV_V7_ON": "1" if goose else "0", "RWKV_JIT_ON": "0", "RWKV_CUDA_ON": "0"}  # read on import
    with mock.patch.dict(os.environ, said), contextlib.redirect_stdout(io.StringIO()), warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # torch.jit's
        spec.loader.exec_module(module)
    return module


def rwkv_logits(weights, tokens, *, goose: bool):
    """Logits ``[B, T, vocab]`` of the ``rwkv`` package in float32 on the CPU; row by row, as it knows no batches."""
    import torch

    with tempfile.TemporaryDirectory() as folder, contextlib.redirect_stdout(io.StringIO()):
        torch.save({name: torch.tensor(x) for name, x in weights.items()}, f"{folder}/tiny.pth")
        model = rwkv_package(goose=goose).RWKV(f"{folder}/tiny", "cpu fp32")
        rows = [model.forward(row.tolist(), None, full_output=True)[0] for row in tokens]
    return torch.stack(rows).numpy()
